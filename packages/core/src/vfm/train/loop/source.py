"""The interface of the data of a training run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vfm.data.loading.batch import Batch, Inputs


class Data(Protocol[Inputs]):
    """A source of batches."""

    def steps(
        self, start_step: int, num_steps: int, *, rank: int, world_size: int, micro_batch_size: int
    ) -> Iterator[list[Batch[Inputs]]]:
        """Yield the steps of a training run, each as this process' micro-batches.

        The content of a step depends only on its number, not on the step at which the iteration starts.

        Args:
            start_step: First step.
            num_steps: Step after the last one.
            rank: Number of this process.
            world_size: Number of processes.
            micro_batch_size: Samples of a micro-batch.
        """
        ...
