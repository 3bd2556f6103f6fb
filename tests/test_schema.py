"""With all plugins installed, the schema for editors accepts the shipped recipes and rejects broken ones."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vfm.flow.recipe.recipe_source import read_source, read_text
from vfm.flow.recipe.schema import json_schema
from vfm.flow.recipe.shipped import shipped_files
from vfm.flow.recipe.yaml_lines import parse
from vfm.interfaces import load_plugins, stage_types

TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
SCHEMA = json_schema(stage_types(load_plugins()))
FILES = shipped_files("recipes")
STAGES = SCHEMA["$defs"]["Recipe"]["properties"]["stages"]["items"]


def accepts(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether a value fits a schema, for the keywords that vfm's schema uses (JSON Schema 2020-12)."""
    if "$ref" in schema:
        return accepts(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "discriminator" in schema:
        discriminator = schema["discriminator"]
        name = value.get(discriminator["propertyName"]) if isinstance(value, dict) else None
        reference = discriminator["mapping"].get(name)
        return bool(reference) and accepts(value, {"$ref": reference})
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return any(accepts(value, branch) for branch in branches)
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    return _fits_inside(value, schema)


def _fits_inside(value: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if set(schema.get("required", [])) - set(value):
            return False
        parts = [(item, known.get(key, others)) for key, item in value.items()]
    elif isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        parts = [(item, prefix[i] if i < len(prefix) else schema.get("items", True)) for i, item in enumerate(value)]
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
    elif isinstance(value, str):
        return not schema.get("pattern") or bool(re.search(schema["pattern"], value))
    else:
        return value is None or isinstance(value, bool) or _in_bounds(value, schema)
    return all(rule is True or (rule is not False and accepts(item, rule)) for item, rule in parts)


def _in_bounds(value: float, schema: dict[str, Any]) -> bool:
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and not value <= schema.get("exclusiveMinimum", float("-inf"))
        and not value >= schema.get("exclusiveMaximum", float("inf"))
    )


@pytest.mark.parametrize("name", FILES)
def test_shipped_recipe_fits_the_schema(name: str) -> None:
    known = stage_types(load_plugins())
    recipe = read_source(read_text(FILES[name]), name, FILES[name].parent).value
    given = {"path": "x.tar"}  # by the user
    stages = [
        {**given, **stage} if "path" in known[stage["kind"]].model_fields else stage for stage in recipe["stages"]
    ]
    assert [stage for stage in stages if not accepts(stage, STAGES)] == []
    assert accepts({**recipe, "stages": stages}, SCHEMA)
    assert accepts({**parse(read_text(FILES[name]), name)[0], "stages": stages}, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "clip.trian"},
        {"stpes": 3},
        {"steps": "many"},
        {"steps": 0},
        {"lr": -1},
        {"optimizer": "adamw"},
        {"optimizer": {"type": "adan"}},
        {"optimizer": {"betas": [0.9]}},
        {"checkpoint": {"every_step": 3}},
        {"runtime": {"device": "gpu"}},
        {"name": "a b"},
        {"data": None},
    ],
    ids=str,
)
def test_broken_stage_does_not_fit(change: dict[str, Any]) -> None:
    stage = {"kind": "clip.train", "name": "clip", "data": "pool", "steps": 3}
    assert accepts({"stages": [stage]}, SCHEMA)
    assert not accepts({"stages": [{**stage, **change}]}, SCHEMA)


def test_recipe_without_stages_or_with_an_unknown_key_does_not_fit() -> None:
    assert not accepts({}, SCHEMA)
    assert not accepts({"stages": [], "stagse": []}, SCHEMA)
