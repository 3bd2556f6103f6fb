"""A task in a single process, and the base class of its placements in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic

import torch
from torch import Tensor, nn

from vfm.data.loading.batch import Inputs
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.task import Metrics, Task

Method = Callable[..., tuple[Tensor, Metrics]]


class Alone(Generic[Inputs]):
    """A task in a single process, and the base class for several processes.

    Attributes:
        task: The trained task, on the device. `wrap` may replace its parameters.
        gathers: Whether each process has all weights within `whole`.
    """

    gathers = True

    def __init__(self, task: Task[Inputs], world: DistributedWorld) -> None:
        self.task = task
        self.world = world

    def wrap(self, half: torch.dtype | None) -> None:
        """Prepare for the first step, after the layers have been prepared.

        Args:
            half: The type in which sharded weights are gathered. Default: fp32.
        """

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Run a method of the task. With FSDP, parameters are only whole within it."""
        return method(*args)

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Prepare the forward and backward pass of a micro-batch."""

    def average_gradients(self) -> None:
        """Average the gradients that the backward passes have not averaged over the processes."""

    @contextmanager
    def whole(self) -> Iterator[Task[Inputs]]:
        """Yield a task with all current weights, and with the buffers of rank 0."""
        yield self.task

    def finish(self) -> Task[Inputs]:
        """Put the current weights into the caller's task, and return it."""
        return self.task


class Routed(nn.Module):
    """Runs any method of a task inside `forward`, since the hooks of DDP and FSDP only run there."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.task = task

    def forward(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Run a method of the task."""
        return method(*args)
