"""Gathering of features from every rank, with gradients, for contrastive losses over the batch of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_with_grad(features: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Gather the features of all ranks, rank by rank. Gradients flow back to the rank that computed the features.

    Each rank receives the sum of the gradients of all ranks' losses for its features. So if every rank takes the mean
    loss over its own samples and gradients are averaged over ranks (as DDP does), parameters get the gradient of the
    whole batch. Without a process group, or with one process, the features are returned unchanged.

    Args:
        features: (n, ...), the same shape on every rank.
        group: Processes to gather from. Default: all of them.

    Returns:
        (world_size * n, ...).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return features
    features_of_all: Tensor = _Gather.apply(features, group)  # type: ignore[no-untyped-call]
    return features_of_all


def gathered(features: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Gather the features of all ranks, (world_size * n, ...), without gradients."""
    result = features.new_empty((dist.get_world_size(group) * features.shape[0], *features.shape[1:]))
    dist.all_gather_into_tensor(result, features.contiguous(), group=group)
    return result


def scattered_sum(values: Tensor, num_local: int, group: dist.ProcessGroup | None) -> Tensor:
    """Add the values of all ranks, and return this rank's part of the sum.

    Args:
        values: (world_size * n, ...) on every rank.
        num_local: Number n of rows of a rank.
        group: Processes to add over. None: all of them.

    Returns:
        (n, ...).
    """
    local = values.new_empty((num_local, *values.shape[1:]))
    dist.reduce_scatter_tensor(local, values.contiguous(), group=group)
    return local


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        ctx.num_local = features.shape[0]
        return gathered(features, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # A feature is a key in the loss of every rank, so its gradient is the sum of what all ranks have computed for
        # it.
        return scattered_sum(grad, ctx.num_local, ctx.group), None
