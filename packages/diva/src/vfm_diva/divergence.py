"""Stops a training whose loss rises for good, while its last good checkpoint is still there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfm.config import UserError

WINDOW = 20  # steps whose mean is compared
LOOK_EVERY = 10  # steps between looks on a device that works ahead of the host


class DivergenceWatch(nn.Module):
    """Compares the mean loss of the last steps with that of the first ones.

    Its numbers are buffers, so they are in the checkpoints and a training that is resumed knows how it began.

    Args:
        max_rise: times the first steps' mean that are put up with.
    """

    recent: Tensor
    first: Tensor
    seen: Tensor

    def __init__(self, max_rise: float) -> None:
        super().__init__()
        self.max_rise = max_rise
        self.register_buffer("recent", torch.zeros(WINDOW))
        self.register_buffer("first", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def add(self, loss: Tensor) -> None:
        """Takes in a step's loss, without looking at it."""
        loss = loss.detach().float()
        self.recent.index_copy_(0, (self.seen % WINDOW)[None], loss[None])
        self.first += torch.where(self.seen < WINDOW, loss / WINDOW, torch.zeros_like(loss))
        self.seen += 1

    def forget(self) -> None:
        """Begins anew: what comes is another training."""
        for number in self.buffers():
            number.zero_()

    def check(self) -> None:
        """Looks.

        Raises:
            UserError: the mean of the last steps is beyond what is put up with.
        """
        steps = int(self.seen)
        if steps <= WINDOW:
            return
        recent, first = float(self.recent.mean()), float(self.first)
        if recent > self.max_rise * first:
            raise UserError(
                f"the denoising loss is {recent:.3g} in the mean of steps {steps - WINDOW + 1} to {steps}, more than "
                f"max_loss_rise: {self.max_rise:g} times the {first:.3g} of the first {WINDOW}: the training diverges; "
                f"stopped, and the checkpoints before are kept; lower lr or give an anchor"
            )
