"""The JSON Schema of recipes, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, create_model

from vfm.flow.recipe.recipe import RecipeKeys, runtime_of
from vfm.interfaces import Stage


def json_schema(known: Mapping[str, type[Stage]]) -> dict[str, Any]:
    """Build the JSON Schema of recipes with the installed stages.

    The stages of a recipe with a `base` are checked loosely, since the base may have their kinds and required fields.

    Args:
        known: Stage types by kind.
    """
    union: Any = Annotated[reduce(or_, known.values()), Field(discriminator="kind")]
    runtime_fields: dict[str, Any] = {}
    for stage in known.values():
        for name, field in runtime_of(stage).model_fields.items():
            runtime_fields[name] = (field.annotation, field)
    # `runtime` of a recipe has the fields of all stages, because each stage takes the ones it has.
    runtime = create_model("RecipeRuntime", __config__={"extra": "forbid"}, **runtime_fields)
    about = {name: field.description for name, field in RecipeKeys.model_fields.items()}
    shared: dict[str, Any] = {
        "description": (str, Field("", description=about["description"])),
        "paths": (dict[str, str], Field({}, description=about["paths"])),
        "runtime": (runtime, Field(runtime(), description=about["runtime"])),
        "seeds": (list[int], Field([], description=about["seeds"])),
    }
    whole = create_model(
        "Recipe",
        __config__={"extra": "forbid"},
        **shared,
        stages=(list[union], Field(description=about["stages"])),
    )
    # A recipe over a base only names its stages, their kinds are in the base.
    item: Any = create_model("StageOverBase", __config__={"extra": "allow"}, name=(str, ...))
    over_base = create_model(
        "RecipeOverBase",
        __config__={"extra": "forbid"},
        base=(str, Field(description="shipped recipe, or path of a recipe, that this one is laid over")),
        **shared,
        stages=(list[item], Field([], description=about["stages"])),
    )
    either: Any = whole | over_base
    return TypeAdapter(either).json_schema()
