"""Train on a user's DataLoader. It has no random access, so a resumed run reads the batches again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor

from vfm.base import UserError
from vfm.data.loading.batch import Batch, SampleDraw
from vfm.data.loading.plain_values import as_tensors, leaves
from vfm.data.loading.torch_dataset import seeded

_END = object()


@dataclass(frozen=True)
class LoaderData:
    """Training steps from a DataLoader, with one batch for each step, epoch after epoch.

    The global generators are seeded by the step before each batch, so a loader without its own generators yields the
    same batches in each process.

    Attributes:
        loader: Yields batches. It can be iterated repeatedly.
        seed: Seed of its random draws.
        first_size: Expected number of samples in the first batch. None: any number.
        log: Called with a message when batches are skipped.
    """

    loader: Iterable[Any]
    seed: int
    log: Callable[[str], None] = lambda line: None
    first_size: int | None = None

    def steps(
        self, start_step: int, num_steps: int, *, rank: int, world_size: int, micro_batch_size: int
    ) -> Iterator[list[Batch[Any]]]:
        """Yield the steps of a training run, after reading the earlier steps again.

        Args:
            start_step: First step.
            num_steps: Step after the last one.
            rank: Number of this process.
            world_size: Number of processes. Only one is possible.
            micro_batch_size: Samples of a micro-batch. A loader's batches are taken whole.

        Raises:
            UserError: If there are several processes, the loader yields no batch, or the first has another size.
        """
        name = type(self.loader).__name__
        if world_size > 1:
            raise UserError(f"{name}: a DataLoader trains in one process, got {world_size}; give its Dataset instead")
        if start_step:
            self.log(f"reads {start_step} batches of the {name} again to skip them; a Dataset resumes at once")
        batches = self._endless(name)
        for step in range(num_steps):
            batch = next(batches)
            if step < start_step:
                continue
            inputs = _as_batch(batch, step, name)
            if step == 0 and self.first_size not in (None, len(inputs)):
                expected = f"expected {len(inputs)}, the samples of its first batch, got {self.first_size}"
                raise UserError(f"{name}: global_batch_size: {expected}; leave it out")
            yield [inputs]

    def _endless(self, name: str) -> Iterator[Any]:
        step = 0
        for epoch in count():
            before = step
            with seeded(SampleDraw.of(self.seed, step, -1).seed):
                iterator = iter(self.loader)
            while True:
                with seeded(SampleDraw.of(self.seed, step, 0).seed):
                    batch = next(iterator, _END)
                if batch is _END:
                    break
                step += 1
                yield batch
            if step == before:
                again = f" in epoch {epoch + 1}, after {step} steps: it can be read once only" if epoch else ""
                raise UserError(f"{name}: it yields no batch{again}")


def _as_batch(value: Any, step: int, name: str) -> Batch[Any]:
    where = f"batch {step + 1} of the {name}"
    inputs = as_tensors(value, where)
    sizes = {len(part) for _, part in leaves(inputs) if isinstance(part, Tensor) and part.ndim}
    if len(sizes) != 1:
        raise UserError(f"{where}: expected tensors with one first dimension, got lengths {sorted(sizes)}")
    return Batch(inputs, [f"{where}, sample {index}" for index in range(sizes.pop())])
