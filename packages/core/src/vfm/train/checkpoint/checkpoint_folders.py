"""Folders of checkpoints, named `step-NUMBER`. This module does not import torch."""

from __future__ import annotations

from pathlib import Path

from vfm.base import UserError

KEPT_FOLDER = "training"  # folder in an artifact with the checkpoints that are kept


def checkpoints_in(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest first. Folders that a user has renamed are ignored."""
    numbered = [child for child in folder.glob("step-*") if child.name.removeprefix("step-").isdecimal()]
    return sorted(numbered, key=step_of)


def step_of(folder: Path) -> int:
    """Parse the step from the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def checkpoint_folder(path: Path, step: int | None) -> Path:
    """Find the folder of a checkpoint.

    Args:
        path: An artifact with kept checkpoints, or a checkpoint.
        step: The step. Default: the last one that is kept.

    Raises:
        UserError: If there is no such checkpoint.
    """
    if path.name.startswith("step-"):
        checkpoints = [folder for folder in checkpoints_in(path.parent) if folder.name == path.name]
        if not checkpoints:
            raise UserError(f"{path}: expected a folder step-NUMBER, as the training has named it")
    else:
        checkpoints = checkpoints_in(path / KEPT_FOLDER)
    steps = list(map(step_of, checkpoints))
    if not checkpoints:
        raise UserError(
            f"{path}: no checkpoint was kept there; set checkpoint.keep_state: true in that training, and run it again"
            " with `fresh`"
        )
    if step is not None and step not in steps:
        raise UserError(f"{path}: expected a step of {', '.join(map(str, steps))}, got continue_from.step: {step}")
    if step is None:
        return checkpoints[-1]
    return checkpoints[steps.index(step)]
