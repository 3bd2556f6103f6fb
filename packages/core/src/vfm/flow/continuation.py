"""What can be known of `continue_from` before a run: whether the earlier training keeps a state that fits."""

from __future__ import annotations

from vfm.config import UserError
from vfm.interfaces import Training
from vfm.interfaces.training import KEPT_FOLDER
from vfm.stage import Preflight


def check_continuation(stage: Training, known: Preflight) -> None:
    """Check that the training that another one continues from keeps the state, and that steps are left.

    Raises:
        UserError: it is no training of the same kind, has another optimizer, does not keep the state, or has as many
            steps as this one.
    """
    if stage.continue_from is None:
        return
    name, step = stage.continue_from.training, stage.continue_from.step
    folder, earlier = known.artifacts.get(name), known.stage(name)
    if folder and not folder.name.startswith("step-") and not any((folder / KEPT_FOLDER).glob("step-*")):
        raise UserError(
            f"continue_from: {name} kept no checkpoint ({folder}); set checkpoint.keep_state: true there, and run it"
            " again with `fresh`"
        )
    if earlier is None:
        return
    if not isinstance(earlier, Training) or earlier.kind != stage.kind:
        raise UserError(f"continue_from: expected a {stage.kind}, got {name}, a {earlier.kind}")
    before, now = earlier.optimizer.algorithm_name, stage.optimizer.algorithm_name
    if before != now:
        raise UserError(f"continue_from: {name} trains with {before}: expected the same optimizer, got {now}")
    policy = earlier.checkpoint
    kept = {*range(0, earlier.num_steps + 1, policy.keep_every)} if policy.keep_every else set()
    kept |= {earlier.num_steps} if policy.keep_state else set()
    if not folder and not kept - {0}:
        raise UserError(f"continue_from: {name} keeps no checkpoint; set checkpoint.keep_state: true there")
    if not folder and step is not None and step not in kept:
        raise UserError(f"continue_from: {name} keeps no checkpoint of step {step}; see checkpoint.keep_every")
    if (begin := step or max(kept, default=0)) >= stage.num_steps:
        raise UserError(f"continue_from: {name} has {begin} steps: expected more steps in all, got {stage.num_steps}")
