"""Repeat the stages of a recipe that depend on a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel

from vfm.base import map_items
from vfm.interfaces import Ref, Stage, refs


def per_seed(stages: Sequence[Stage], seeds: Sequence[int]) -> list[Stage]:
    """Repeat the stages that depend on a seed, once for each seed.

    These are the stages with a `seed` that the recipe does not set, and all stages that depend on them. The stage
    `clip` becomes `clip@0`, `clip@1`, ...
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
            changed: dict[str, Any] = {"name": f"{stage.name}@{seed}"}
            if draws:
                changed["seed"] = seed
            renamed = cast("Stage", _renamed(stage, {name: f"{name}@{seed}" for name in repeated}))
            result.append(renamed.model_copy(update=changed))
    return result


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Replace every ref to a name in `names`, in a stage or any value in it."""
    if isinstance(value, Ref):
        ref: Ref[Any] = Ref(names.get(value, value))
        # A new Ref does not know the type of artifact that it refers to.
        ref.target = value.target
        return ref
    if isinstance(value, BaseModel):
        changed = {}
        for key in type(value).model_fields:
            before = getattr(value, key)
            after = _renamed(before, names)
            # Only changed fields, since `model_copy` marks a field as given, and defaults must stay unmarked.
            if after != before:
                changed[key] = after
        return value.model_copy(update=changed)
    if isinstance(value, tuple):
        return tuple(_renamed(item, names) for item in value)
    return map_items(lambda item: _renamed(item, names), value)
