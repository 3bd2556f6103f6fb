"""Any recipe is accepted or rejected with a message, and the schema describes what is accepted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import toy_plugin
import vfm
from cli_world import RECIPE, run_here, toys
from vfm.cli.written_recipe import run_written
from vfm.flow.recipe import yaml_lines
from vfm.flow.recipe.recipe import load_recipe, parse_recipe
from vfm.flow.recipe.schema import json_schema
from vfm.interfaces import load_plugins, stage_types

__all__ = ["toys"]
KNOWN = {stage.kind_name(): stage for stage in toy_plugin.vfm_stages()}


def error_of(text: str, *overrides: str, absent_path: str = "") -> str:
    with pytest.raises(vfm.UserError) as caught:
        parse_recipe(text, KNOWN, overrides, name="r", where="r.yaml", absent_path=absent_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "r.yaml:1: expected a recipe: a mapping with the key 'stages'"),
        ("stages:\n", "r.yaml:1: stages: expected a list, got None"),
        ("stages: []\n", "r.yaml:1: stages: []: list should have at least 1 item"),
        ("stages: [3]\n", "r.yaml:1: stages[0]: expected a dictionary, got 3"),
        ("stages:\n  - {kind: toy.draw, name: a, Count: 3}\n", "r.yaml:2: a.Count: unknown key; did you mean 'count'?"),
        ("stages:\n  - {kind: toy.draw, name: a, 1: 3}\n", "r.yaml:2: a.1: unknown key"),
        ("stages:\n  - {kind: toy.draw, name: a, my-key: 3}\n", "r.yaml:2: a.my-key: unknown key"),
        ("stages:\n  - {kind: toy.draw, name: [a]}\n", "r.yaml:2: stages[0].name: expected a string, got ['a']"),
        ("stages:\n  - {kind: toy.draw, name: a b}\n", "r.yaml:2: a b.name: expected a string that matches"),
        ("stages:\n  - {kind: [toy.draw], name: a}\n", "r.yaml:2: a.kind: unknown stage kind"),
        ("stages:\n  - {name: a}\n", "r.yaml:2: a.kind: is required"),
        ("stages:\n  - {[a]: b}\n", "r.yaml:2: not valid YAML: expected a plain key, got a list or mapping"),
        ("null: 3\nstages: [{kind: toy.draw, name: a}]\n", "r.yaml:1: null: unknown key"),
        (
            "seeds: [1, 1]\nstages: [{kind: toy.draw, name: a}]\n",
            "r.yaml:1: seeds: expected distinct seeds, got [1, 1]",
        ),
        ("seeds: [-1]\nstages: [{kind: toy.draw, name: a}]\n", "r.yaml:1: seeds[0]: must be at least 0, got -1"),
        ("[" * 5000, "r.yaml: nested too deeply"),
        ("a: &a [*a]\nstages: *a\n", "nested too deeply; an alias may contain itself"),
    ],
)
def test_odd_recipe_is_rejected_in_one_line(text, said):
    for path in ("", "(absent)"):  # the second one is what `vfm plan --estimate` does
        line = error_of(text, absent_path=path)
        assert said in line
        assert "\n" not in line


def test_a_file_that_is_no_text_is_one_line_where_a_recipe_is_written_or_copied(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"\xff\xd8")
    with pytest.raises(vfm.UserError, match=r"photo\.jpg: is not as a command wrote it"):
        run_written(load_plugins(), file, "stages: []\n", (), tmp_path / "store", dry_run=True, quiet=True)
    done = run_here("init", tmp_path / "mine.yaml", "--like", file)
    assert (done.code, "photo.jpg: not UTF-8 text" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("a.count=x\ny", r"set a.count=x\ny: a.count: expected an integer, got 'x y'"),
        ("a.count=x\u2028\r\x1b", r"set a.count=x\u2028\r\x1b: a.count: "),
        ("a.co\nunt=3", r"set a.co\nunt=3: a.co\nunt: unknown key; did you mean 'count'?"),
        ("a\nb", r"set a\nb: expected NAME.FIELD=VALUE"),
        ("a\nb.count=3", r"set a\nb.count=3: no stage is named 'a\nb'"),
        ("a.count.x\n.y=3", r"set a.count.x\n.y=3: 'count' is not a mapping with fields"),
    ],
)
def test_newline_in_an_override_is_escaped_and_the_mistake_stays_one_line(override, said):
    (line,) = error_of(RECIPE, override).splitlines()
    assert line.startswith(said)


def test_newline_in_a_key_or_a_name_of_a_recipe_is_escaped():
    text = 'stages:\n  - {kind: toy.draw, name: "a\\nb", "x\\ny": 3}\n'
    name, key = error_of(text).splitlines()
    assert name.startswith(r"r.yaml:2: a\nb.name: expected a string that matches")
    assert key.startswith(r"r.yaml:2: a\nb.x\ny: unknown key")


def test_aliases_that_multiply_are_rejected_quickly():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert "check the aliases" in error_of(bomb)


def test_merged_defaults_are_overridden_and_keys_are_text():
    text = "stages:\n  - &base {kind: toy.draw, name: a, count: 2}\n  - {<<: *base, name: b, seed: 4}\n"
    a, b = parse_recipe(text, KNOWN, name="r", where="r.yaml").stages
    assert (a.name, b.name, a.count, b.count, b.seed) == ("a", "b", 2, 2, 4)


def test_override_behind_an_alias_changes_one_stage_only():
    text = RECIPE.replace("[a, b]}", "[a], part: &part {weight: 1}}")
    text += "  - {kind: toy.add, name: other, inputs: [a], part: *part}\n"
    stages = parse_recipe(text, KNOWN, ["sum.part.weight=2"], name="r", where="r.yaml").stages
    assert [stage.part.weight for stage in stages[2:]] == [2, 1]


@pytest.mark.parametrize(
    ("text", "value"), [("010", 10), ("-08", -8), ("0100", 100), ("2024-01-01", "2024-01-01"), ("1:30", "1:30")]
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert yaml_lines.parse_value(text, "--set x") == value


texts = st.text(max_size=8) | st.sampled_from(
    ["08", "010", "1e3", "2024-01-01", "1:30", "no", "~", "0x10", "=", "<<", "\x85"]
)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    )
)
def test_a_recipe_that_is_written_is_read_back(value: object) -> None:
    assert yaml_lines.parse(yaml_lines.dump({"stages": [value, value]}), "r.yaml")[0] == {"stages": [value, value]}


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
keys = st.sampled_from(["kind", "name", "seed", "inputs", "part", "runtime", "stages", "Big", "x-y", ""]) | scalars
values = st.recursive(
    scalars | st.sampled_from(["a", "b", "toy.draw", "toy.add"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def refusal(text: str, overrides: list[str]) -> str:
    """Return the error message of a recipe, or an empty string."""
    try:
        parse_recipe(text, KNOWN, overrides, name="r", where="r.yaml")
    except vfm.UserError as error:
        return str(error)
    return ""


places = st.sampled_from(["top", "stage", "field", "nested"])


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(place=places, key=keys, value=values, override=st.text(max_size=12))
def test_any_value_in_any_place_is_accepted_or_rejected_with_a_message(place, key, value, override):
    recipe: dict[Any, Any] = yaml.safe_load(RECIPE)
    target: Any = {
        "top": recipe,
        "stage": recipe["stages"][0],
        "field": recipe["stages"][2],
        "nested": recipe["stages"][2].setdefault("part", {}),
    }[place]
    target[key] = value
    for overrides in ([], [f"a.{override}"], [f"{override}=1"], [f"a.count={override}"]):
        for line in refusal(yaml.safe_dump(recipe), overrides).splitlines():
            assert re.match(r"r\.yaml:\d+: |set ", line)


def schema_of(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema["$defs"]["Recipe"]["properties"]["stages"]["items"]["discriminator"]["mapping"][kind]
    found: dict[str, Any] = schema["$defs"][reference.removeprefix("#/$defs/")]
    return found


def test_schema_is_json_and_has_every_kind_and_field(toys):
    schema = json.loads(run_here("schema").out)
    known = stage_types(load_plugins())
    whole, over_base = schema["$defs"]["Recipe"], schema["$defs"]["RecipeOverBase"]
    assert schema["anyOf"] == [{"$ref": "#/$defs/Recipe"}, {"$ref": "#/$defs/RecipeOverBase"}]
    assert set(whole["properties"]) == {"description", "paths", "runtime", "seeds", "stages"}
    assert set(over_base["properties"]) == {"base", *whole["properties"]}
    assert (whole["additionalProperties"], whole["required"], over_base["required"]) == (False, ["stages"], ["base"])
    assert set(whole["properties"]["stages"]["items"]["discriminator"]["mapping"]) == set(known)
    for kind, stage in known.items():
        about = schema_of(kind, schema)
        assert about["additionalProperties"] is False
        assert set(about["properties"]) == set(stage.model_fields), kind
        assert about["properties"]["kind"]["const"] == kind
        required = {name for name, field in stage.model_fields.items() if field.is_required()}
        assert set(about.get("required", [])) == required


def test_every_reference_in_the_schema_leads_somewhere():
    schema = json_schema(stage_types(load_plugins()))
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(schema)))
    assert references
    assert references <= set(schema["$defs"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sum.prat.weight=3", "set sum.prat.weight=3: sum.prat: unknown key; did you mean 'part'?"),
        ("sum.part={weight: -1}", "set sum.part={weight: -1}: sum.part.weight: must be at least 0, got -1"),
        ("b.count=-1", "set b.count=-1: b.count: must be at least 1, got -1"),
        ("sum.part.weight=inf", "set sum.part.weight=inf: sum.part.weight: expected a finite number, got 'inf'"),
    ],
)
def test_mistake_of_an_override_is_reported_there_and_not_at_a_line_of_the_file(override, said):
    text = RECIPE.replace("inputs: [a, b]", "inputs: [a, b], part: {weight: 2}")
    assert error_of(text, override) == said


def test_plan_refuses_folders_that_are_not_the_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    kinds = {"mmvp": "data.choices", "imagenet": "data.labeled", "coco": "data.pairs"}
    stages = [{"kind": kind, "name": name, "path": str(tmp_path / "photos")} for name, kind in kinds.items()]
    (tmp_path / "r.yaml").write_text(json.dumps({"stages": stages}))
    done = run_here("plan", tmp_path / "r.yaml", "--store", tmp_path / "store")
    assert done.code == 2
    first, second, third = done.errors
    assert first.startswith("error: r.yaml:1: mmvp: ")
    assert "Questions.csv: no such file" in first
    assert "r.yaml:1: imagenet: " in second
    assert "expected one folder per class" in second
    assert "coco: " in third
    assert "missing_caption" in third


def test_a_value_that_only_the_data_show_as_wrong_has_the_places_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("a photo")
    base = "description: pairs\nstages:\n- {kind: data.pairs, name: pool, path: photos, texts: {en: caption}}\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "r.yaml").write_text("base: base.yaml\n\nstages:\n- {name: pool, num_samples: 1}\n")
    done = run_here("plan", "r.yaml", "--check")
    (line,) = done.errors
    assert line.startswith("error: r.yaml:4 and base.yaml:3: pool: photos: none of the first samples can be used: ")
    assert "expected captions en in caption: set texts to their location" in line


def test_a_stage_of_a_seed_has_the_place_of_the_stage_that_it_repeats(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("seeds: [0, 1]\n" + RECIPE)
    recipe = load_recipe(str(tmp_path / "r.yaml"), KNOWN)
    places = {stage.name: recipe.stage_place(stage) for stage in recipe.stages}
    assert places["a@0"] == places["a@1"] == "r.yaml:3"


def test_a_base_of_the_same_name_is_named_by_its_path(tmp_path: Path) -> None:
    base, recipe = tmp_path / "shared" / "my r.yaml", tmp_path / "my r.yaml"
    base.parent.mkdir()
    base.write_text("\n\n" + RECIPE)
    recipe.write_text("base: shared/my r.yaml\nstages:\n- {name: a}\n")
    loaded = load_recipe(str(recipe), KNOWN)
    assert loaded.stage_place(loaded.stages[0]) == f"my r.yaml:3 and {base}:4"
