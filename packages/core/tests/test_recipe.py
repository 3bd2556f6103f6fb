"""A recipe with a mistake is refused before anything runs, with one line that says where and what is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy_plugin
import vfm
from vfm.flow import yaml_lines
from vfm.flow.recipe import Recipe, parse_recipe

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


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(vfm.UserError) as caught:
        parse(text, *overrides)
    return str(caught.value)


def test_good_recipe_is_parsed_with_nested_parts_and_yaml_floats():
    recipe = parse(GOOD)
    assert [stage.name for stage in recipe.stages] == ["a", "b", "sum"]
    assert recipe.stages[2].part.weight == 0.1
    assert recipe.stages[2].part.extra == "a"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("count: 2", "coutn: 2", "r.yaml:2: a.coutn: unknown key; did you mean 'count'?"),
        ("count: 2", "count: two", "r.yaml:2: a.count: 'two' is wrong: should be integer"),
        ("count: 2", "count: 0", "r.yaml:2: a.count: 0 is wrong: should be greater than or equal to 1"),
        ("mode: squared", "mode: cubed", "r.yaml:3: b.mode: 'cubed' is not allowed; choose from 'plain', 'squared'"),
        ("toy.add", "toy.ad", "r.yaml:4: sum.kind: unknown stage kind 'toy.ad'; did you mean 'toy.add'?"),
        ("toy.add", "eva.pretrain", "needs a package that is not installed: pip install vfm-eva"),
        (
            "inputs: [a, b]",
            "inputs: [a, c]",
            "r.yaml:6: sum.inputs[1]: no earlier stage and no saved artifact is named 'c'",
        ),
        ("weight: 1e-1", "wieght: 1", "r.yaml:7: sum.part.wieght: unknown key; did you mean 'weight'?"),
        ("weight: 1e-1", "weight: -1", "r.yaml:7: sum.part.weight: -1 is wrong"),
        ("{weight: 1e-1, extra: a}", "small", "r.yaml:7: sum.part: 'small' is wrong: should be a mapping of keys to"),
        ("name: b", "name: a", "r.yaml:3: a.name: another stage has this name already"),
        ("    inputs: [a, b]\n", "", "r.yaml:4: sum.inputs: is required"),
        ("count: 2}", "count: 2", "r.yaml:3: not valid YAML"),
        ("count: 2", "count: 2, count: 3", "r.yaml:2: not valid YAML: key 'count' stands twice"),
        ("stages:", "stagse:", "r.yaml:1: stagse: unknown key; did you mean 'stages'?"),
    ],
)
def test_mistake_is_one_line_with_place_and_remedy(old, new, expected):
    assert expected in complaint(GOOD.replace(old, new, 1))


def test_every_mistake_is_told_at_once():
    text = GOOD.replace("count: 2", "count: x").replace("mode: squared", "mode: 3")
    assert len(complaint(text).splitlines()) == 2


def test_stage_cannot_use_a_later_one():
    text = "stages:\n  - {kind: toy.add, name: s, inputs: [a]}\n  - {kind: toy.draw, name: a}\n"
    assert complaint(text) == "r.yaml:2: s.inputs[0]: 'a' comes later; a stage can only use earlier ones"


def test_wrong_type_of_input_is_named():
    text = "stages:\n  - {kind: toy.read, name: w, path: x}\n  - {kind: toy.add, name: s, inputs: [w]}\n"
    assert complaint(text) == "r.yaml:3: s.inputs[0]: wants a Numbers; 'w' makes a Words"


def test_saved_artifact_is_an_input_by_its_path(tmp_path):
    toy_plugin.Numbers.create(tmp_path / "n", values=[1])
    toy_plugin.Words.create(tmp_path / "w", text="x")
    text = f"stages:\n  - {{kind: toy.add, name: s, inputs: ['{tmp_path}/n']}}\n"
    assert parse(text).stages[0].inputs == [f"{tmp_path}/n"]
    assert "holds a Words" in complaint(text.replace("/n'", "/w'"))


def test_override_replaces_one_field_and_is_named_in_errors():
    assert parse(GOOD, "a.count=5", "sum.part.weight=5e-4").stages[0].count == 5
    assert parse(GOOD, "sum.part.weight=5e-4").stages[2].part.weight == 5e-4
    assert (
        complaint(GOOD, "a.count=no")
        == "--set a.count=no: a.count: 'no' is wrong: should be integer, unable to parse string as an integer"
    )
    assert "did you mean 'sum'" in complaint(GOOD, "smu.pause=1")
    assert "NAME.FIELD=VALUE" in complaint(GOOD, "a.count")


def test_runtime_of_the_recipe_reaches_every_stage_and_a_stage_overrides_it():
    recipe = parse("runtime: {workers: 2}\n" + GOOD.replace("count: 2", "count: 2, runtime: {workers: 1}"))
    assert [stage.runtime.workers for stage in recipe.stages] == [1, 2, 2]
    assert "r.yaml:1: a.runtime.wrokers: unknown key" in complaint("runtime: {wrokers: 2}\n" + GOOD)


def test_seeds_multiply_what_draws_and_what_builds_on_it():
    text = "seeds: [3, 4]\n" + GOOD.replace("mode: squared", "seed: 9")
    recipe = parse(text)
    assert [stage.name for stage in recipe.stages] == ["a@3", "a@4", "b", "sum@3", "sum@4"]
    assert [stage.seed for stage in recipe.stages[:3]] == [3, 4, 9]
    assert recipe.stages[4].inputs == ["a@4", "b"]
    assert recipe.stages[4].part.extra == "a@4"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_as_python_prints_it_is_read_back(value):
    assert yaml_lines.parse_value(repr(value), "--set x") == value


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused_in_words(text):
    message = "parsed"
    try:
        parse(text)
    except vfm.UserError as error:
        message = str(error)
    assert message


def test_yaml_cannot_make_objects():
    assert "not valid YAML" in complaint("stages: !!python/object/apply:os.system [echo]\n")
