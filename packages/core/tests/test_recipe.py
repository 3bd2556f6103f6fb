"""A recipe with a mistake is rejected before anything runs, with one line for its place and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, strategies as st

import toy_plugin
import vfm
from vfm.data.pairs.stages import Images
from vfm.flow.recipe import yaml_lines
from vfm.flow.recipe.recipe import Recipe, load_recipe, parse_recipe
from vfm.flow.recipe.recipe_source import read_source
from vfm.interfaces import load_plugins, stage_types

KNOWN = {stage.kind_name(): stage for stage in toy_plugin.vfm_stages()}
GOOD = """\
stages:
  - {kind: toy.draw, name: a, count: 2}
  - {kind: toy.draw, name: b, mode: squared}
  - kind: toy.add
    name: sum
    inputs: [a, b]
    part: {weight: 1e-1, extra: a}
"""


def parse(text: str, *overrides: str) -> Recipe:
    return parse_recipe(text, KNOWN, overrides, name="r", where="r.yaml")


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(vfm.UserError) as caught:
        parse(text, *overrides)
    return str(caught.value)


def test_valid_recipe_is_parsed_with_nested_parts_and_yaml_floats():
    recipe = parse(GOOD)
    assert [stage.name for stage in recipe.stages] == ["a", "b", "sum"]
    assert recipe.stages[2].part.weight == 0.1
    assert recipe.stages[2].part.extra == "a"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("count: 2", "coutn: 2", "r.yaml:2: a.coutn: unknown key; did you mean 'count'?"),
        ("count: 2", "count: two", "r.yaml:2: a.count: expected an integer, got 'two'"),
        ("count: 2", "count: 0", "r.yaml:2: a.count: must be at least 1, got 0"),
        (
            "mode: squared",
            "mode: cubed",
            "r.yaml:3: b.mode: 'cubed' is not a valid choice; choose from 'plain'",
        ),
        ("toy.add", "toy.ad", "r.yaml:4: sum.kind: unknown stage kind 'toy.ad'; did you mean 'toy.add'?"),
        ("toy.add", "eva.pretrain", "needs a package that is not installed: uv pip install -e packages/eva"),
        (
            "inputs: [a, b]",
            "inputs: [a, c]",
            "r.yaml:6: sum.inputs[1]: no earlier stage and no saved artifact is named 'c'",
        ),
        ("weight: 1e-1", "wieght: 1", "r.yaml:7: sum.part.wieght: unknown key; did you mean 'weight'?"),
        ("weight: 1e-1", "weight: -1", "r.yaml:7: sum.part.weight: must be at least 0, got -1"),
        ("weight: 1e-1", "weight: .inf", "r.yaml:7: sum.part.weight: expected a finite number, got inf"),
        ("weight: 1e-1", "weight: .nan", "r.yaml:7: sum.part.weight: expected a finite number, got nan"),
        ("{weight: 1e-1, extra: a}", "small", "r.yaml:7: sum.part: expected a mapping of keys to values, got 'small'"),
        ("name: b", "name: a", "r.yaml:3: a.name: another stage has this name"),
        ("    inputs: [a, b]\n", "", "r.yaml:4: sum.inputs: is required"),
        ("count: 2}", "count: 2", "r.yaml:3: not valid YAML"),
        ("count: 2", "count: 2, count: 3", "r.yaml:2: not valid YAML: duplicate key 'count'"),
        ("stages:", "stagse:", "r.yaml:1: stagse: unknown key; did you mean 'stages'?"),
    ],
)
def test_mistake_is_one_line_with_place_and_remedy(old, new, expected):
    assert expected in error_of(GOOD.replace(old, new, 1))


def test_all_mistakes_are_reported_at_once():
    text = GOOD.replace("count: 2", "count: x").replace("mode: squared", "mode: 3")
    assert len(error_of(text).splitlines()) == 2


def test_stage_cannot_use_a_later_one():
    text = "stages:\n  - {kind: toy.add, name: s, inputs: [a]}\n  - {kind: toy.draw, name: a}\n"
    assert error_of(text) == "r.yaml:2: s.inputs[0]: 'a' comes later; a stage can only use earlier ones"


def test_wrong_type_of_an_input_is_reported():
    text = "stages:\n  - {kind: toy.read, name: w, path: x}\n  - {kind: toy.add, name: s, inputs: [w]}\n"
    assert error_of(text) == "r.yaml:3: s.inputs[0]: expected a Numbers; 'w' makes a Words"


def test_saved_artifact_is_an_input_by_its_path(tmp_path):
    toy_plugin.Numbers.create(tmp_path / "n", values=[1])
    toy_plugin.Words.create(tmp_path / "w", text="x")
    text = f"stages:\n  - {{kind: toy.add, name: s, inputs: ['{tmp_path}/n']}}\n"
    assert parse(text).stages[0].inputs == [f"{tmp_path}/n"]
    assert "holds a Words" in error_of(text.replace("/n'", "/w'"))


def test_override_replaces_one_field_and_errors_name_it():
    assert parse(GOOD, "a.count=5", "sum.part.weight=5e-4").stages[0].count == 5
    assert parse(GOOD, "sum.part.weight=5e-4").stages[2].part.weight == 5e-4
    assert error_of(GOOD, "a.count=no") == "set a.count=no: a.count: expected an integer, got 'no'"
    assert "did you mean 'sum'" in error_of(GOOD, "smu.pause=1")
    assert "NAME.FIELD=VALUE" in error_of(GOOD, "a.count")


def test_runtime_of_the_recipe_reaches_every_stage_and_a_stage_overrides_it():
    recipe = parse("runtime: {workers: 2}\n" + GOOD.replace("count: 2", "count: 2, runtime: {workers: 1}"))
    assert [stage.runtime.workers for stage in recipe.stages] == [1, 2, 2]


def test_mistake_in_the_runtime_of_the_recipe_is_reported_once():
    for runtime, line in {
        "{wrokers: 2}": "r.yaml:1: runtime.wrokers: unknown key; did you mean 'workers'?",
        "{workers: -2}": "r.yaml:1: runtime.workers: must be at least 0, got -2",
        "{processes: 2, device: 'cuda:1'}": "r.yaml:1: runtime: 2 processes cannot share cuda:1",
    }.items():
        assert error_of(f"runtime: {runtime}\n{GOOD}").startswith(line)
        assert "\n" not in error_of(f"runtime: {runtime}\n{GOOD}")
    own = GOOD.replace("count: 2", "count: 2, runtime: {workers: -1}")
    assert error_of("runtime: {workers: 2}\n" + own).startswith("r.yaml:3: a.runtime.workers: must be at least 0")


class FastRuntime(vfm.Runtime):
    """A runtime with a key of its own."""

    engine_of_test: str = "slow"


class FastDraw(toy_plugin.Draw):
    """Draw numbers fast."""

    kind: Literal["toy.fast"] = "toy.fast"  # type: ignore[assignment]
    runtime: FastRuntime = FastRuntime()


def test_each_stage_takes_the_runtime_keys_that_its_own_class_has():
    known = KNOWN | {"toy.fast": FastDraw}
    text = "runtime: {engine_of_test: quick, workers: 2}\n" + GOOD.replace(
        "kind: toy.draw, name: a", "kind: toy.fast, name: a"
    )
    a, b, _ = parse_recipe(text, known, ["runtime.threads=3"], name="r", where="r.yaml").stages
    assert (a.runtime.engine_of_test, a.runtime.workers, a.runtime.threads) == ("quick", 2, 3)
    assert (b.runtime.workers, b.runtime.threads) == (2, 3)
    assert "r.yaml:1: runtime.engine_of_test: unknown key" in error_of(text.replace("toy.fast", "toy.draw"))


def test_seeds_repeat_the_stages_that_draw_and_those_that_depend_on_them():
    text = "seeds: [3, 4]\n" + GOOD.replace("mode: squared", "seed: 9")
    recipe = parse(text)
    assert [stage.name for stage in recipe.stages] == ["a@3", "a@4", "b", "sum@3", "sum@4"]
    assert [stage.seed for stage in recipe.stages[:3]] == [3, 4, 9]
    assert recipe.stages[4].inputs == ["a@4", "b"]
    assert recipe.stages[4].part.extra == "a@4"


def test_a_stage_of_a_seed_has_the_settings_that_were_given_and_no_other():
    """By these another process makes it again, and a default may be refused beside another setting."""
    a, _, total = parse("seeds: [3]\n" + GOOD).stages
    assert a.given_settings() == {"kind": "toy.draw", "name": "a@3", "count": 2, "seed": 3}
    part = {"weight": 0.1, "extra": "a@3"}
    assert total.given_settings() == {"kind": "toy.add", "name": "sum@3", "inputs": ["a@3", "b@3"], "part": part}


def test_a_folder_of_the_recipe_is_named_in_the_stages_and_set_in_one_place():
    text = "paths: {photos: here/}\nstages:\n  - {kind: data.images, name: a, path: [$photos/a.tar, $photos/b.tar]}\n"

    def parsed(*overrides: str, text: str = text) -> Recipe:
        return parse_recipe(text, {"data.images": Images}, overrides, name="r", where="r.yaml")

    assert parsed().stages[0].path == ["here/a.tar", "here/b.tar"]
    assert parsed("paths.photos=/data").stages[0].path == ["/data/a.tar", "/data/b.tar"]
    with pytest.raises(vfm.UserError, match=r"r.yaml:3: a: \$photo/c: paths has no folder 'photo'; did you mean"):
        parsed(text=text.replace("$photos/a.tar", "$photo/c"))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_as_python_prints_it_is_read_back(value):
    assert yaml_lines.parse_value(repr(value), "--set x") == value


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_rejected_with_a_message(text):
    message = "parsed"
    try:
        parse(text)
    except vfm.UserError as error:
        message = str(error)
    assert message


def test_yaml_cannot_make_objects():
    assert "not valid YAML" in error_of("stages: !!python/object/apply:os.system [echo]\n")


BASE = """\
description: What all have in common.
runtime: {workers: 2}
stages:
  - {kind: toy.draw, name: a, count: 2}
  - kind: toy.add
    name: sum
    inputs: [a]
    part: {weight: 2, extra: a}
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Recipe]:
    """Write files by name, with BASE as base.yaml, and load r.yaml."""

    def load_files(*overrides: str, **texts: str) -> Recipe:
        for name, text in {"base": BASE, **texts}.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return load_recipe(str(tmp_path / "r.yaml"), KNOWN, overrides)

    return load_files


def test_recipe_is_laid_over_its_base(load):
    own = "base: base.yaml\nstages:\n  - {name: sum, part: {weight: 3}}\n  - {kind: toy.draw, name: b, seed: 4}\n"
    recipe = load(r=own)
    a, total, b = recipe.stages
    assert (recipe.name, recipe.description, recipe.bases) == ("r", "What all have in common.", ("base.yaml",))
    assert (a.count, a.runtime.workers) == (2, 2)
    assert (total.part.weight, total.part.extra, total.inputs) == (3, "a", ["a"])
    assert (b.name, b.seed) == ("b", 4)
    assert parse(recipe.text).stages == recipe.stages


def test_description_runtime_and_seeds_replace_those_of_the_base(load):
    recipe = load(r="base: base.yaml\ndescription: Mine.\nruntime: {threads: 1}\nseeds: [5]\n")
    assert recipe.description == "Mine."
    assert (recipe.stages[0].runtime.workers, recipe.stages[0].runtime.threads) == (0, 1)
    assert [stage.name for stage in recipe.stages] == ["a@5", "sum@5"]


def test_override_reaches_the_stages_of_the_base(load):
    assert load("a.count=7", r="base: base.yaml\n").stages[0].count == 7


def test_base_of_a_base_and_a_path_from_the_files_folder(load, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "middle.yaml").write_text("base: ../base.yaml\nstages: [{name: a, count: 5}]\n")
    recipe = load(r="base: sub/middle.yaml\nstages: [{name: a, seed: 3}]\n")
    assert (recipe.stages[0].count, recipe.stages[0].seed) == (5, 3)
    assert recipe.bases == ("middle.yaml", "base.yaml")


def test_mapping_of_another_type_replaces_that_of_the_base(tmp_path):
    base, own = {"loss": {"type": "a", "x": 1}, "group": {"x": 1}}, {"loss": {"type": "b"}, "group": {"y": 2}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"stages": [{"name": "s", **base}]}))
    text = yaml.safe_dump({"base": "base.yaml", "stages": [{"name": "s", **own}]})
    (stage,) = read_source(text, "r.yaml", tmp_path).value["stages"]
    assert stage == {"name": "s", "loss": {"type": "b"}, "group": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (
            {"r": "base: bsae\n"},
            "r.yaml:1: base: no recipe 'bsae': neither a file nor a shipped recipe",
        ),
        ({"r": "base: 3\n"}, "r.yaml:1: base: expected a path or the name of a shipped recipe, got 3"),
        (
            {"r": "base: b.yaml\n", "b": "base: r.yaml\n"},
            "b.yaml:1: base: a recipe cannot be its own base: r.yaml -> b.yaml -> r.yaml",
        ),
        (
            {"r": "base: base.yaml\nstages:\n  - {count: 3}\n"},
            "r.yaml:3: stages[0]: name is required, to find the stage in base.yaml",
        ),
        (
            {"r": "base: base.yaml\nstages: [3]\n"},
            "r.yaml:2: stages[0]: name is required, to find the stage in base.yaml",
        ),
        (
            {"r": "base: base.yaml\nstages:\n  - {name: a, coutn: 3}\n"},
            "r.yaml:3: a.coutn: unknown key; did you mean 'count'?",
        ),
        (
            {"r": "base: base.yaml\n", "base": BASE.replace("count", "coutn")},
            "base.yaml:4: a.coutn: unknown key; did you mean 'count'?",
        ),
        (
            {"r": "base: base.yaml\nstages:\n  - {name: sum, part: {weight: -1}}\n"},
            "r.yaml:3: sum.part.weight: must be at least 0, got -1",
        ),
        ({"r": "base: base.yaml\n", "base": "stages: [\n"}, "base.yaml:2: not valid YAML"),
        (
            {"r": "base: base.yaml\nstages:\n  - {name: c, kind: toy.add, inputs: [d]}\n"},
            "r.yaml:3: c.inputs[0]: no earlier stage and no saved artifact is named 'd'",
        ),
        (
            {"r": "base: base.yaml\nstages:\n  - {name: a}\n  - {name: a, kind: toy.draw}\n"},
            "r.yaml:4: a.name: another stage",
        ),
    ],
)
def test_mistake_with_a_base_is_one_line_that_names_its_file(load, texts, line):
    with pytest.raises(vfm.UserError) as caught:
        load(**texts)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "stages: [{kind: data.pairs, name: pool, path: !!timestamp 2020-13-01}]",
            "not valid YAML: month must be in 1..12",
        ),
        (f"stages: [{{kind: data.pairs, name: pool, path: {'9' * 5000}}}]", "not valid YAML: Exceeds the limit"),
        (f"base: {'z' * 5000}", "base: no recipe 'zzz"),
        (f"stages: [{{kind: eval.summary, name: s, scores: [{{report: {'z' * 5000}}}]}}]", "no earlier stage"),
    ],
)
def test_values_that_other_libraries_refuse_are_lines_with_the_name_of_the_recipe(tmp_path, text, said):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(vfm.UserError) as caught:
        load_recipe(str(tmp_path / "r.yaml"), stage_types(load_plugins()), ())
    assert all("r.yaml" in line for line in str(caught.value).splitlines())
    assert said in str(caught.value)
