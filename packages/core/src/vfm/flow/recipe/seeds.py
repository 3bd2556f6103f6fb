"""The `seeds` of a recipe: repeat the stages that draw random numbers, once per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel

from vfm.interfaces import Ref, Stage, refs


def per_seed(stages: Sequence[Stage], seeds: Sequence[int]) -> list[Stage]:
    """Return the stages, with those that depend on a seed repeated for each seed.

    These are the stages with a `seed` that the recipe does not set, and all stages that depend on one of them. The
    stage `clip` becomes `clip@0`, `clip@1`, ...
    """
    if not seeds:
        return list(stages)
    repeated: set[str] = set()
    result: list[Stage] = []
    for stage in stages:
        draws = "seed" in type(stage).model_fields and "seed" not in stage.model_fields_set
        if not draws and not any(ref in repeated for _, ref in refs(stage)):
            result.append(stage)
            continue
        repeated.add(stage.name)
        for seed in seeds:
            changed: dict[str, Any] = {"name": f"{stage.name}@{seed}"} | ({"seed": seed} if draws else {})
            renamed = cast("Stage", _renamed(stage, {name: f"{name}@{seed}" for name in repeated}))
            result.append(renamed.model_copy(update=changed))
    return result


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return the value with every ref to a name in `names` replaced."""
    if isinstance(value, Ref):
        ref: Ref[Any] = Ref(names.get(value, value))
        ref.target = value.target
        return ref
    if isinstance(value, BaseModel):
        fields = {key: getattr(value, key) for key in type(value).model_fields}
        renamed = {key: _renamed(item, names) for key, item in fields.items()}
        # Only what has changed: `model_copy` marks a setting as given, which a default is not.
        return value.model_copy(update={key: item for key, item in renamed.items() if item != fields[key]})
    if isinstance(value, (list, tuple)):
        return type(value)(_renamed(item, names) for item in value)
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    return value
