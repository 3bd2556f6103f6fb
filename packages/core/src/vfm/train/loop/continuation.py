"""Training from the state of another run (`continue_from`), and the checkpoints that are kept for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vfm.base import UserError
from vfm.interfaces import Context, Training
from vfm.train.checkpoint.checkpoint import Checkpoints, Snapshot
from vfm.train.checkpoint.checkpoint_folders import KEPT_FOLDER, checkpoint_folder, step_of
from vfm.train.loop.curves import METRICS_FILE


def keep_checkpoints(checkpoints: Checkpoints, directory: Path, last: int) -> None:
    """Link the checkpoints that the policy keeps into an artifact, where they stay after it is published.

    Args:
        checkpoints: Checkpoints of the training.
        directory: Folder of the artifact.
        last: The last step, whose checkpoint `keep_state` keeps.
    """
    policy = checkpoints.policy
    for folder in checkpoints.found():
        step = step_of(folder)
        if checkpoints.is_kept(step) or (policy.keep_state and step == last):
            shutil.copytree(folder, directory / KEPT_FOLDER / folder.name, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def earlier_snapshot(config: Training, ctx: Context, checkpoints: Checkpoints) -> Snapshot | None:
    """Read the state that a training starts from.

    Only weights, averages and optimizer state come from the other run. Counts of bad samples and scores start anew.
    Rank 0 copies the other run's log of the steps so far to the beginning of the new log.

    Args:
        config: Configuration of the training.
        ctx: Context of the training.
        checkpoints: Reads the state.

    Returns:
        The state, or None if the training starts from the initial weights.

    Raises:
        UserError: If the state is damaged, is of another optimizer, or has as many steps as this training or more.
    """
    if config.continue_from is None:
        return None
    folder = checkpoint_folder(ctx.inputs[config.continue_from.training], config.continue_from.step)
    snapshot = checkpoints.read(folder)
    if snapshot.step >= config.num_steps:
        raise UserError(
            f"{ctx.stage}: continue_from: the state in {folder} has {snapshot.step} steps: expected more steps in all,"
            f" got steps: {config.num_steps}"
        )
    before = snapshot.facts.get("optimizer")
    now = config.optimizer.algorithm_name
    if before != now:
        raise UserError(
            f"{ctx.stage}: continue_from: the state in {folder} was saved by {before}: expected the same optimizer,"
            f" got {now}"
        )
    if config.ema_decay and "ema" not in snapshot.tensors:
        raise UserError(
            f"{ctx.stage}: continue_from: the state in {folder} has no average of the weights: omit ema_decay"
        )
    curves = snapshot.facts["curves"]
    # The log is in the work folder of an unfinished run, or in the artifact above the folder of kept checkpoints.
    logs = [parent / METRICS_FILE for parent in folder.parents[:2] if (parent / METRICS_FILE).is_file()]
    lines = logs[0].read_bytes()[: curves["file_bytes"]] if logs else b""
    if checkpoints.world.is_main:
        (ctx.work / METRICS_FILE).write_bytes(lines)
    samples = curves.get("samples", snapshot.step * config.global_batch_size)
    snapshot.facts |= {
        "curves": {"names": [], "sums": [], "samples": samples, "file_bytes": len(lines)},
        "skipped": {"before": samples, "reads": 0, "counts": {}, "samples": []},
        "best": {"step": 0, "scores": []},
    }
    snapshot.tensors.pop("best", None)
    return snapshot
