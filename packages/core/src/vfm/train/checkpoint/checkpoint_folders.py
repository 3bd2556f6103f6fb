"""Find the folders of a training's checkpoints, `step-NUMBER`, without torch."""

from __future__ import annotations

from pathlib import Path

from vfm.base import UserError

KEPT_FOLDER = "training"  # of an artifact, with the checkpoints that are kept


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first; one that a user has renamed is left alone."""
    numbered = [one for one in folder.glob("step-*") if one.name.removeprefix("step-").isdecimal()]
    return sorted(numbered, key=step_of)


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder by its name."""
    return int(folder.name.removeprefix("step-"))


def checkpoint_folder(place: Path, step: int | None) -> Path:
    """Return the folder of a checkpoint.

    Args:
        place: an artifact with kept checkpoints, or a checkpoint.
        step: the step; None: the last one that is kept.

    Raises:
        UserError: there is no such checkpoint.
    """
    if place.name.startswith("step-"):
        kept = [one for one in checkpoints_in(place.parent) if one.name == place.name]
        if not kept:
            raise UserError(f"{place}: expected a folder step-NUMBER, as the training has named it")
    else:
        kept = checkpoints_in(place / KEPT_FOLDER)
    steps = [step_of(folder) for folder in kept]
    if not kept:
        raise UserError(
            f"{place}: no checkpoint was kept there; set checkpoint.keep_state: true in that training, and run it again"
            " with `fresh`"
        )
    if step is not None and step not in steps:
        raise UserError(f"{place}: expected a step of {', '.join(map(str, steps))}, got continue_from.step: {step}")
    return kept[-1] if step is None else kept[steps.index(step)]
