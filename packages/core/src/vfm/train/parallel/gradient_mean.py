"""The mean of bf16 gradients over the processes, a communication hook for DDP."""

# DDP compares the annotations of a hook with its types, so they must not be strings (`from __future__`).

import torch
from torch import Tensor, distributed as dist


def mean_in_fp32(num_processes: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of bf16 gradients over the processes, a hook for DDP (`precision: bf16`).

    A sum in bf16 loses what is smaller than 1/256 of it, at each of the additions. Here the mean is rounded once.
    """
    gradients = bucket.buffer()
    work = dist.all_reduce(gradients.float() / num_processes, async_op=True)
    mean: torch.futures.Future[Tensor] = work.get_future().then(lambda future: gradients.copy_(future.value()[0]))
    return mean
