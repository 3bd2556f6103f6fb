"""A task that each process has whole (DDP)."""

# DDP compares the annotations of a hook with its types, so they must not be strings (`from __future__`).

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from vfm.data.loading.batch import Inputs
from vfm.train.parallel.placement import Alone, Method, Routed
from vfm.train.task import Metrics, Task


class Replicated(Alone[Inputs]):
    """A task whose whole model is in each process. DDP averages gradients with the last micro-batch of a step."""

    def wrap(self, half: torch.dtype | None) -> None:
        """Compare the weights of all processes, and prepare DDP's buckets."""
        device = self.world.device
        ids = [device.index] if device.type == "cuda" else None
        # Gradients are views of the buckets, which saves a copy of all gradients.
        self.ddp = DistributedDataParallel(
            Routed(self.task),
            device_ids=ids,
            gradient_as_bucket_view=True,
            broadcast_buffers=has_state_in_buffers(self.task),
        )
        if any(param.dtype == torch.bfloat16 for param in self.task.parameters()):
            self.ddp.register_comm_hook(self.world.size, mean_in_fp32)

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Run a method of the task."""
        output: tuple[Tensor, Metrics] = self.ddp(method, *args)
        return output

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Average gradients only in the last micro-batch, as DDP's `no_sync` does."""
        self.ddp.require_backward_grad_sync = is_last

    @contextmanager
    def whole(self) -> Iterator[Task[Inputs]]:
        """Yield the task with the buffers of rank 0. DDP also uses them from the next step on."""
        self.world.copy_from_first(self.task.buffers())
        yield self.task


def has_state_in_buffers(module: nn.Module) -> bool:
    """Check whether a module has buffers that training may change, such as the statistics of a batch norm.

    Constants, such as rotary positions or an attention mask, are not in its state dict. DDP would send them from rank 0
    in every step.
    """
    return not module.state_dict().keys().isdisjoint(dict(module.named_buffers()))


def mean_in_fp32(num_processes: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of bf16 gradients over the processes, a hook for DDP (`precision: bf16`).

    A sum in bf16 loses what is smaller than 1/256 of it, at each of the additions. Here the mean is rounded once.
    """
    gradients = bucket.buffer()
    work = dist.all_reduce(gradients.float() / num_processes, async_op=True)
    mean: torch.futures.Future[Tensor] = work.get_future().then(lambda future: gradients.copy_(future.value()[0]))
    return mean
