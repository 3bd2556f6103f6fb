"""Expected seconds of the steps of a plan. They only decide the order in which steps begin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from vfm.base import UserError
from vfm.flow.plan.plan import Step
from vfm.interfaces import MANIFEST_FILE, Evaluation, Stage, Training
from vfm.storage.integrity import read_sealed

SAMPLES_PER_SECOND = 500.0  # for a training stage that never ran before
SAMPLES_PER_EPOCH = 100_000.0  # of data that have not been read yet
EVALUATION_SECONDS = 10.0
OTHER_SECONDS = 3.0
NEWEST = 20  # number of artifacts of each kind to read


def longest_paths(steps: Sequence[Step]) -> dict[str, float]:
    """Compute for each step of a plan the seconds from its start to the end of the last step that needs it."""
    measured = _measured_seconds(steps)
    seconds: dict[str, float] = {}
    following: defaultdict[str, float] = defaultdict(float)  # the longest path after each step
    for step in reversed(steps):
        name = step.stage.name
        step_seconds = 0.0
        if step.status != "cached":
            step_seconds = measured.get(without_seed(name), _guess(step.stage))
        seconds[name] = step_seconds + following[name]
        for ref in step.inputs:
            following[ref] = max(following[ref], seconds[name])
    return seconds


def _measured_seconds(steps: Sequence[Step]) -> dict[str, float]:
    """Look up the durations of stages of the same kind and name, with any settings. The newest artifact counts."""
    kinds = {(step.slot.root, step.stage.kind) for step in steps}
    files: list[Path] = []
    for root, kind in kinds:
        files += _newest(root.glob(f"{kind}-*/{MANIFEST_FILE}"))
    measured = {}
    for file in files:
        with suppress(UserError):  # a damaged artifact, or one that `vfm clean` is removing
            record = read_sealed(file, "name", "seconds")
            measured[without_seed(str(record["name"]))] = float(record["seconds"])
    return measured


def _newest(files: Iterable[Path]) -> list[Path]:
    """Sort files by time and select the newest, newest last."""
    dated = []
    for file in files:
        with suppress(FileNotFoundError):
            dated.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(dated)[-NEWEST:]]


def without_seed(name: str) -> str:
    """Remove the seed from the name of a stage."""
    return name.split("@", 1)[0]


def _guess(stage: Stage) -> float:
    if isinstance(stage, Training):
        if stage.epochs is not None:
            return stage.epochs * SAMPLES_PER_EPOCH / SAMPLES_PER_SECOND
        return stage.num_steps * stage.global_batch_size / SAMPLES_PER_SECOND
    return EVALUATION_SECONDS if isinstance(stage, Evaluation) else OTHER_SECONDS
