"""Why a stage of a plan is new: its differences from the artifact of the same stage in the last run of the recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vfm.base import UserError, decisive_settings, incidental_settings
from vfm.flow.plan.plan import Step
from vfm.flow.plan.store import STEP_FILE, Slot, Store
from vfm.flow.recipe.recipe import Recipe
from vfm.flow.recipe.run_names import owner_of
from vfm.flow.records.runs import KeptRun, kept_runs
from vfm.interfaces import MANIFEST_FILE
from vfm.storage.fingerprints import by_located_path, located
from vfm.storage.integrity import read_sealed

MAX_CHANGES = 4  # number of changes in a line
MAX_CHARACTERS = 40  # maximum length of a value


def reasons(recipe: Recipe, steps: Sequence[Step], store: Store) -> dict[str, str]:
    """Explain why stages of a recipe's plan are new, in one line each, such as `lr 0.0005 -> 0.001`.

    Args:
        recipe: The recipe.
        steps: Its planned steps.
        store: Store of the artifacts.
    """
    new = [step for step in steps if step.status == "new"]
    if not new:
        return {}
    owner = owner_of(recipe.file, recipe.name, store.root)
    runs = [run for run in reversed(kept_runs(store)) if run.owner == owner]
    lines = {}
    for step in new:
        changed = step.changed_inputs()
        if changed:
            lines[step.stage.name] = f"{', '.join(changed)}: made again since, and not the same"
            continue
        before = _record(step.stage.name, runs, store)
        if before:
            changes = list(_changes(step, before)) or [_made_by_another_version(step, before["config"])]
            if len(changes) > MAX_CHANGES:
                more = f" and {len(changes) - MAX_CHANGES} more"
            else:
                more = ""
            lines[step.stage.name] = ", ".join(changes[:MAX_CHANGES]) + more
    return lines


def differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, value before, value after) for each difference between two configurations.

    A key that one of them lacks is None there. Of parts of different types, only the type is compared.

    Args:
        before: Earlier configuration.
        after: Present configuration.
        key: Beginning of the keys.
    """
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        if before != after:
            yield key, before, after
        return
    if before.get("type") != after.get("type"):
        names = ["type"]
    else:
        names = list(dict.fromkeys([*before, *after]))
    for name in names:
        yield from differences(before.get(name), after.get(name), f"{key}.{name}" if key else str(name))


def _record(name: str, runs: Sequence[KeptRun], store: Store) -> dict[str, Any] | None:
    """Read how the newest artifact of a stage was made, or is being made."""
    for run in runs:
        if name not in run.links:
            continue
        slot = Slot(store.root, run.links[name])
        with suppress(UserError):
            return read_sealed(slot.artifact / MANIFEST_FILE, "config", "inputs", "sources", "version")
        with suppress(UserError):
            return record_of_step(slot.work)
    return None


def record_of_step(work: Path) -> dict[str, Any]:
    """Read how the artifact of a work folder is being made, with the keys of a manifest.

    Raises:
        UserError: If the folder holds no prepared step.
    """
    record = read_sealed(work / STEP_FILE, "stage", "inputs", "fingerprints")
    sources = by_located_path(record["fingerprints"])
    return {"config": record["stage"], "inputs": record["inputs"], "sources": sources}


def _changes(step: Step, before: Mapping[str, Any]) -> Iterator[str]:
    after = step.stage.model_dump(mode="json")
    left_out = {"name", "kind", *(incidental_settings(step.stage).keys() & _incidental_before(step, before["config"]))}
    for key, old, new in differences(before["config"], after):
        if not any(key == name or key.startswith(f"{name}.") for name in left_out):
            yield f"{key} {_short(old)} -> {_short(new)}"
    if before.get("version", step.stage.version) != step.stage.version:
        yield f"version of {step.stage.kind} {before['version']} -> {step.stage.version}"
    for ref, identity in step.inputs.items():
        if before["inputs"].get(ref, identity) != identity:
            yield f"{ref} is new"
    for path, fingerprint in step.fingerprints.items():
        if before["sources"].get(located(path), fingerprint) != fingerprint:
            yield f"{path} has changed"


def _made_by_another_version(step: Step, config: Mapping[str, Any]) -> str:
    gained = [name for name in decisive_settings(step.stage) if name not in {"kind", "name", *config}]
    if gained:
        return f"new settings of {step.stage.kind} in this version of vfm: {', '.join(gained)}"
    return "made by another version of vfm"


def _incidental_before(step: Step, config: Mapping[str, Any]) -> set[str]:
    """List the settings of an earlier configuration that did not matter. A setting may matter by its value."""
    try:
        return set(incidental_settings(type(step.stage).model_validate({**config, "name": step.stage.name})))
    except ValidationError:  # of an earlier version
        return set(incidental_settings(step.stage))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[: MAX_CHARACTERS - 3] + "..."
