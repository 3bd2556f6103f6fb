"""Why a stage is new: the differences to the same stage of the last run of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest

import toy_plugin
from test_flow import KNOWN
from vfm.base import Incidental
from vfm.flow.execution.run import run_plan
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.reasons import differences, reasons

TEXT = """\
stages:
  - {kind: toy.draw, name: a, count: 40}
  - {kind: toy.draw, name: b, seed: 5}
  - {kind: toy.add, name: sum, inputs: [a, b], pause: 0.0}
"""


def why(store: Path, *overrides: str, run: bool = False) -> dict[str, str]:
    recipe = parse_recipe(TEXT, KNOWN, overrides, name="r", where="r.yaml")
    steps = make_plan(recipe, Store(store))
    found = reasons(recipe, steps, Store(store))
    if run:
        run_plan(recipe, steps, Store(store), lambda event: None)
    return found


def test_a_new_stage_says_what_differs_from_the_last_run(tmp_path: Path) -> None:
    assert why(tmp_path, run=True) == {}
    assert why(tmp_path) == {}
    assert why(tmp_path, "a.count=50", run=True) == {"a": "count 40 -> 50", "sum": "a is new"}
    assert why(tmp_path, "a.count=60", "b.seed=6") == {
        "a": "count 50 -> 60",
        "b": "seed 5 -> 6",
        "sum": "a is new, b is new",
    }
    assert why(tmp_path) == {}  # cached since the first run


class Limited(toy_plugin.Draw):
    """A stage with a setting that matters only if it has a value."""

    kind: Literal["toy.limited"] = "toy.limited"  # type: ignore[assignment]
    limit: Annotated[int | None, Incidental(unless="limit")] = None


def test_a_setting_that_matters_only_with_a_value_is_named_in_both_directions(tmp_path: Path) -> None:
    def why_limited(*overrides: str) -> dict[str, str]:
        text = "stages:\n  - {kind: toy.limited, name: a}\n"
        recipe = parse_recipe(text, {"toy.limited": Limited}, overrides, name="r", where="r.yaml")
        steps = make_plan(recipe, Store(tmp_path))
        lines = reasons(recipe, steps, Store(tmp_path))
        run_plan(recipe, steps, Store(tmp_path), lambda event: None)
        return lines

    why_limited("a.limit=3")
    assert why_limited() == {"a": "limit 3 -> null"}
    assert why_limited("a.limit=4") == {"a": "limit null -> 4"}


class Shorter(toy_plugin.Draw):
    """A stage of an earlier version."""

    kind: Literal["toy.longer"] = "toy.longer"  # type: ignore[assignment]


class Longer(toy_plugin.Draw):
    """The stage with a setting that its earlier version lacks."""

    kind: Literal["toy.longer"] = "toy.longer"  # type: ignore[assignment]
    limit: int | None = None


def test_settings_that_a_new_version_has_gained_are_named(tmp_path: Path) -> None:
    text = "stages: [{kind: toy.longer, name: a}]"
    recipe = parse_recipe(text, {"toy.longer": Shorter}, name="r", where="r.yaml")
    run_plan(recipe, make_plan(recipe, Store(tmp_path)), Store(tmp_path), lambda event: None)
    recipe = parse_recipe(text, {"toy.longer": Longer}, name="r", where="r.yaml")
    lines = reasons(recipe, make_plan(recipe, Store(tmp_path)), Store(tmp_path))
    assert lines == {"a": "new settings of toy.longer in this version of vfm: limit"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"lr": 1, "steps": 2}, {"lr": 3, "steps": 2}, [("lr", 1, 3)]),
        ({"loading": {"a": 1}}, {"loading": {"a": 2}}, [("loading.a", 1, 2)]),
        ({"part": {"type": "x", "a": 1}}, {"part": {"type": "y", "b": 2}}, [("part.type", "x", "y")]),
        ({"part": None}, {"part": {"a": 1}}, [("part", None, {"a": 1})]),
        ({}, {"a": 1}, [("a", None, 1)]),
        ({"a": [1]}, {"a": [1, 2]}, [("a", [1], [1, 2])]),
    ],
)
def test_differences(before: dict[str, object], after: dict[str, object], expected: list[object]) -> None:
    assert list(differences(before, after)) == expected
