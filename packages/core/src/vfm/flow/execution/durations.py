"""Seconds that the steps of a plan are expected to take. They decide in which order steps begin, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from vfm.base import UserError
from vfm.flow.plan.plan import Step
from vfm.interfaces import MANIFEST_FILE, Evaluation, Stage, Training
from vfm.storage.integrity import read_sealed

SAMPLES_PER_SECOND = 500.0  # of a training of which nothing is known
EVALUATION_SECONDS, OTHER_SECONDS = 10.0, 3.0
NEWEST = 20  # artifacts of a kind that are looked at


def longest_paths(steps: Sequence[Step]) -> dict[str, float]:
    """Return for each step of a plan the seconds from its start to the end of the last step that needs it."""
    after: dict[str, list[str]] = {step.stage.name: [] for step in steps}
    for step in steps:
        for ref in step.inputs:
            after.get(ref, []).append(step.stage.name)
    taken = _taken(steps)
    seconds: dict[str, float] = {}
    for step in reversed(steps):
        name = step.stage.name
        own = 0.0 if step.status == "cached" else taken.get(_without_seed(name), _guess(step.stage))
        seconds[name] = own + max((seconds[later] for later in after[name]), default=0.0)
    return seconds


def _taken(steps: Sequence[Step]) -> dict[str, float]:
    """Return how long stages of the same kind and name took, with any settings, by name; of several the newest."""
    places = {(step.slot.root, step.stage.kind) for step in steps}
    files = [file for root, kind in places for file in _newest(root.glob(f"{kind}-*/{MANIFEST_FILE}"))]
    taken = {}
    for file in files:
        with suppress(UserError):  # an artifact that is damaged, or of which `vfm clean` removes the folder now
            record = read_sealed(file, "name", "seconds")
            taken[_without_seed(str(record["name"]))] = float(record["seconds"])
    return taken


def _newest(files: Iterable[Path]) -> list[Path]:
    """Return the newest files, the newest last."""
    dated = []
    for file in files:
        with suppress(FileNotFoundError):
            dated.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(dated)[-NEWEST:]]


def _without_seed(name: str) -> str:
    return name.partition("@")[0]


def _guess(stage: Stage) -> float:
    if isinstance(stage, Training):
        return stage.num_steps * stage.global_batch_size / SAMPLES_PER_SECOND
    return EVALUATION_SECONDS if isinstance(stage, Evaluation) else OTHER_SECONDS
