"""A few samples of a training's data to measure on and to look at, from all over it: its shards may be sorted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from vfm.data.loader import Batch, TrainingData, sample_seed
from vfm.data.sample import BadSample, Sample
from vfm.train import Task


def excerpt(data: TrainingData, task: Task, *, num_batches: int, batch_size: int) -> Iterator[Batch]:
    """The first samples in the training's shuffled order, on the task's device, none twice.

    Args:
        data: of the training.
        task: tells the device.
        num_batches: at most; fewer where the data ends.
        batch_size: samples of each; one batch of all where there are fewer.
    """
    size = min(batch_size, len(data.source))
    count = min(num_batches, len(data.source) // size)
    device = next(task.parameters()).device
    for (batch,) in replace(data, global_batch_size=size).steps(0, count):
        yield {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def usable(data: TrainingData) -> Iterator[tuple[Sample, dict[str, Tensor]]]:
    """The samples that can be used, in the same order, each with what the training makes of it."""
    order = data.order()
    for place in range(len(data.source)):
        index = int(order(place, place + 1)[0])
        try:
            sample = data.source[index]
            yield sample, data.make(sample, sample_seed(data.seed, 0, index))
        except BadSample:
            continue
