"""What of a tower a gradient reaches: DDP waits for every weight that is trained, so the others must not be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def freeze_unreached(
    module: nn.Module, outputs: Callable[[], Sequence[Tensor]], *, start: nn.Module | None = None
) -> None:
    """Of the weights that are trained, freezes those that no gradient of the outputs reaches.

    Args:
        module: changed in place.
        outputs: runs it and gives what the losses are made of.
        start: a part at whose input the gradients end, so that what lies before it is frozen as well.
    """
    trained = [param for param in module.parameters() if param.requires_grad]
    hook = start.register_forward_pre_hook(_cut) if start else None
    try:
        total: Tensor = sum(value.float().sum() for value in outputs())  # type: ignore[assignment]
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
    finally:
        if hook:
            hook.remove()
    for param, gradient in zip(trained, gradients, strict=True):
        param.requires_grad_(gradient is not None)


def _cut(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)
