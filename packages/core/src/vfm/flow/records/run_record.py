"""The record of a run, `run.json`, with its recipe, its artifacts, and how it was run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vfm.base import keep_keys, redacted, redacted_words
from vfm.flow.plan.plan import Step, stage_names
from vfm.flow.plan.roots import origin_of
from vfm.flow.recipe.recipe import Recipe
from vfm.flow.recipe.run_names import owner_of
from vfm.interfaces import MANIFEST_FILE
from vfm.storage.chained_lines import end_of_chain
from vfm.storage.integrity import hash_file

HOW = ("text", "command", "started", "seconds", "events")  # keys that describe how the artifacts of a run were made


def record_of(
    recipe: Recipe, steps: Sequence[Step], store: Path, started: float, seconds: float | None
) -> dict[str, Any]:
    """Build the record of a run of this process, without credentials.

    Args:
        recipe: The recipe.
        steps: Its plan.
        store: Folder of the store.
        started: Time at which the run began.
        seconds: Duration. None: it has not finished.
    """
    what = {
        "recipe": recipe.name,
        "file": owner_of(recipe.file, recipe.name, store),
        "description": recipe.description,
        "text": recipe.text,
        "stages": stage_names(steps),
        "artifacts": [step.slot.name for step in steps],
    }
    return {**redacted(what), "command": _command(), "started": started, "seconds": seconds}


def commitments(steps: Sequence[Step], events: Path) -> dict[str, Any]:
    """Collect the hashes by which the record of a finished run commits to everything that it made.

    Args:
        steps: Its plan. Artifacts that another run is making again at this moment are left out.
        events: File of its events.

    Returns:
        The root of each stage's artifact, the SHA-256 of each manifest, and number and hash of the last event.
    """
    manifests = {}
    roots = {}
    for step in steps:
        folder = step.slot.artifact
        try:
            manifests[step.stage.name] = hash_file(folder / MANIFEST_FILE)
        except FileNotFoundError:
            continue
        roots[step.stage.name] = origin_of(folder).root
    return {"roots": roots, "manifests": manifests, "events": list(end_of_chain(events))}


def after_rerun(record: Mapping[str, Any], before: Mapping[str, Any], *, made: bool) -> dict[str, Any]:
    """Update the record of a run that has finished again. If it made nothing, the keys of `HOW` keep their values.

    Args:
        record: Record of the run that has finished now.
        before: Record of the last time; empty if there was none.
        made: Whether any artifact was made.
    """
    if made or before.get("seconds") is None:
        return dict(record)
    return {**record, **keep_keys(before, HOW)}


def _command() -> str:
    """Format the command line of this process, without credentials."""
    program = Path(sys.argv[0]).name
    words = ["vfm"] if program in ("vfm", "__main__.py") else ["python", program]
    return shlex.join([*words, *redacted_words(sys.argv[1:])])
