"""Hollow weights have the shape, type and device of a weight, but store a single number."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vfm.models.stored_weights import mark, stored_weight
from vfm.train.task import Task

T = TypeVar("T", bound=Task[Any])


def hollow(like: Tensor, device: torch.device) -> Tensor:
    """Create a tensor of the same shape and type that takes no memory. It can be read but not written."""
    return torch.zeros((), dtype=like.dtype, device=device).expand(like.shape)


def without_meta(module: nn.Module) -> None:
    """Replace weights on the meta device by hollow ones on the CPU, and such buffers by empty ones, in place.

    Tied weights stay tied.
    """
    cpu = torch.device("cpu")
    weights: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, param in part.named_parameters(recurse=False, remove_duplicate=False):
            if param.is_meta:
                new = nn.Parameter(hollow(param, cpu), requires_grad=param.requires_grad)
                mark(new, stored_weight(param))
                setattr(part, name, weights.setdefault(param, new))
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False):
            if buffer.is_meta:
                setattr(part, name, torch.empty_like(buffer, device=cpu))


def hollow_copy(task: T, device: torch.device) -> tuple[T, dict[nn.Parameter, nn.Parameter]]:
    """Copy a task with hollow weights on a device. Its buffers are copied, and its frozen models are shared.

    Returns:
        The copy, and the weight of the task for each weight of the copy.
    """
    shared: dict[int, Any] = {}
    for held in task.frozen():
        shared[id(held)] = held
        for module in held.module.modules():
            shared[id(module)] = module
    sources = {}
    for param in task.parameters():
        new = nn.Parameter(hollow(param, device), requires_grad=param.requires_grad)
        shared[id(param)] = new
        sources[new] = param
    copy = deepcopy(task, shared)
    for buffer in copy.buffers():
        buffer.data = buffer.data.to(device)
    return copy, sources
