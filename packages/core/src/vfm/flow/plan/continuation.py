"""Checks of `continue_from` before a run: whether the earlier training stage keeps a state that fits."""

from __future__ import annotations

from vfm.base import UserError
from vfm.interfaces import Preflight, Stage, Training
from vfm.train.checkpoint.checkpoint_folders import checkpoint_folder, step_of


def check_continuation(stage: Training, known: Preflight) -> None:
    """Check that the training stage to continue from keeps its state, and that steps are left.

    Raises:
        UserError: If it is not a training stage of the same kind, has another optimizer, does not keep the state, or
            has as many steps as this stage or as a step to skip.
    """
    if stage.continue_from is None:
        return
    name = stage.continue_from.training
    step = stage.continue_from.step
    folder = known.artifacts.get(name)
    earlier = known.stage(name)
    if earlier:
        planned = _same_training(stage, name, earlier).with_steps(known.artifact)
    else:
        planned = None
    stage = stage.with_steps(known.artifact)
    if folder:
        try:
            begin = step_of(checkpoint_folder(folder, step))
        except UserError as error:
            raise UserError(f"continue_from: {error}") from None
    elif planned and planned.epochs is None:
        begin = _planned_step(planned, name, step)
    else:
        return
    if stage.epochs is None and begin >= stage.num_steps:
        raise UserError(f"continue_from: {name} has {begin} steps: expected more steps in all, got {stage.num_steps}")
    before = [skipped for skipped in stage.skip_steps if skipped <= begin]
    if before:
        raise UserError(f"skip_steps: expected steps after {begin}, from which {stage.name} continues, got {before}")


def _same_training(stage: Training, name: str, earlier: Stage) -> Training:
    """Check that the earlier stage is a training stage of the same kind with the same optimizer."""
    if not isinstance(earlier, Training) or earlier.kind != stage.kind:
        raise UserError(f"continue_from: expected a {stage.kind}, got {name}, a {earlier.kind}")
    before = earlier.optimizer.algorithm_name
    now = stage.optimizer.algorithm_name
    if before != now:
        raise UserError(f"continue_from: {name} trains with {before}: expected the same optimizer, got {now}")
    return earlier


def _planned_step(earlier: Training, name: str, step: int | None) -> int:
    """Determine which checkpoint of a training stage that has not run yet will be read, by its step."""
    policy = earlier.checkpoint
    last = earlier.num_steps
    if policy.keep_every:
        kept_steps = {*range(policy.keep_every, last + 1, policy.keep_every)}
    else:
        kept_steps = set()
    kept_steps |= {last} if policy.keep_state else set()
    if not kept_steps:
        raise UserError(f"continue_from: {name} keeps no checkpoint; set checkpoint.keep_state: true there")
    if step is not None and step not in kept_steps:
        raise UserError(f"continue_from: {name} keeps no checkpoint of step {step}; see checkpoint.keep_every")
    return step or max(kept_steps)
