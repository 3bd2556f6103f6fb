"""The plan of a run: the identity of every stage's artifact, and whether it is in the store. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.artifacts import Report
from vfm.flow.fingerprints import cached_fingerprints
from vfm.flow.recipe import Recipe
from vfm.flow.store import MANIFEST_FILE, Slot, Store
from vfm.interfaces import Training
from vfm.stage import Ref, Stage, refs
from vfm.store_files import read_record


@dataclass(frozen=True)
class Step:
    """One stage of a plan: its identity, its inputs and its slot in the store."""

    stage: Stage
    identity: str
    inputs: dict[str, str]  # ref as written -> identity of the artifact behind it
    folders: dict[str, Path]  # ref as written -> folder of that artifact, which may not exist yet
    fingerprints: dict[str, str]  # outside file -> fingerprint
    slot: Slot

    @property
    def status(self) -> str:
        """`cached`, `resume` or `new`, at this moment."""
        return self.slot.status


def make_plan(recipe: Recipe, store: Store) -> list[Step]:
    """Return the steps of a recipe in order.

    The identity of a step is a hash of kind, version, configuration (without name and runtime), the identities of its
    inputs and the fingerprints of outside files; for a report also of the names of its inputs, which it shows. Equal
    identities mean equal results, so a published artifact is never made again.

    Raises:
        UserError: an outside file is missing or cannot be read.
    """
    steps: dict[str, Step] = {}
    with cached_fingerprints(store.root) as fingerprint:
        for stage in recipe.stages:
            inputs: dict[str, str] = {}
            folders: dict[str, Path] = {}
            for _, ref in refs(stage):
                earlier = steps.get(ref)
                inputs[ref] = earlier.identity if earlier else saved_identity(Path(ref), fingerprint)
                folders[ref] = (earlier.slot.artifact if earlier else Path(ref)).resolve()
            fingerprints = {path: fingerprint(path) for path in stage.sources()}
            identity = _identity(stage, inputs, fingerprints)
            slot = store.slot(stage.kind, identity)
            steps[stage.name] = Step(stage, identity, inputs, folders, fingerprints, slot)
    return list(steps.values())


def _identity(stage: Stage, inputs: Mapping[str, str], fingerprints: Mapping[str, str]) -> str:
    excluded = {"name", "runtime", "kind"}
    record: dict[str, Any] = {"kind": stage.kind, "version": stage.version, "sources": sorted(fingerprints.values())}
    if isinstance(stage, Training):
        excluded.add("checkpoint")  # resuming is exact: when checkpoints are saved does not change the result
        record["evaluations"] = [task.version for task in stage.evaluation.tasks]
    if issubclass(stage.makes, Report):
        record["names"] = [ref.rstrip("/").rpartition("/")[2] for _, ref in refs(stage)]
    record["config"] = _with_identities(stage.model_dump(exclude=excluded), inputs)
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _with_identities(value: Any, inputs: Mapping[str, str]) -> Any:
    if isinstance(value, Ref):
        return inputs[value]
    if isinstance(value, dict):
        return {key: _with_identities(item, inputs) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_identities(item, inputs) for item in value]
    return value


def saved_identity(folder: Path, fingerprint: Callable[[str], str]) -> str:
    """Return the identity of a saved artifact: that of its manifest, else a hash of its files' fingerprints."""
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        return str(read_record(manifest, "identity")["identity"])
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = [(str(path.relative_to(folder)), fingerprint(str(path))) for path in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:32]
