"""Stop training if its loss keeps rising, while the last good checkpoint still exists."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfm.plugin import UserError

WINDOW = 20  # steps whose mean is compared
CHECK_EVERY = 10  # steps between checks on a device that runs ahead of the host


class DivergenceWatch(nn.Module):
    """Compares the mean loss of the last steps with the mean loss of the first ones.

    Its numbers are buffers, so they are saved in checkpoints, and a resumed run still compares with its first steps.

    Args:
        max_rise: Largest tolerated multiple of the first steps' mean.
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
        """Record a step's loss, without synchronising with the device."""
        loss = loss.detach().float()
        self.recent.index_copy_(0, (self.seen % WINDOW)[None], loss[None])
        self.first += torch.where(self.seen < WINDOW, loss / WINDOW, torch.zeros_like(loss))
        self.seen += 1

    def reset(self) -> None:
        """Discard all losses, because another training run begins."""
        for number in self.buffers():
            number.zero_()

    def check(self) -> None:
        """Compare the losses.

        Raises:
            UserError: If the mean of the last steps exceeds the tolerated multiple.
        """
        steps = int(self.seen)
        if steps <= WINDOW:
            return
        recent = float(self.recent.mean())
        first = float(self.first)
        if recent > self.max_rise * first:
            raise UserError(
                f"the training diverges: the mean denoising loss of steps {steps - WINDOW + 1} to {steps} is "
                f"{recent:.3g}, more than max_loss_rise: {self.max_rise:g} times the {first:.3g} of the first {WINDOW} "
                f"steps; earlier checkpoints are kept; lower lr or set an anchor"
            )
