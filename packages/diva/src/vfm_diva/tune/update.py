"""The updates: which weights of a vision tower are trained, its own or low-rank changes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vfm.models import LowRank, vision_tower
from vfm_diva.parts.parts import LastBlocks, Lora, WholeTower


def _nothing() -> None:
    return


@dataclass(frozen=True)
class TowerUpdate:
    """A tower that was prepared for training.

    start: a part of the tower; what comes before it is frozen. None: nothing is.
    merge: makes the tower an ordinary one again, after the training.
    """

    start: nn.Module | None = None
    merge: Callable[[], None] = _nothing


def update_tower(config: WholeTower, visual: nn.Module, *, seed: int) -> TowerUpdate:
    """Prepare to train the whole tower."""
    return TowerUpdate()


def update_last_blocks(config: LastBlocks, visual: nn.Module, *, seed: int) -> TowerUpdate:
    """Prepare to train the last blocks and what follows them."""
    return TowerUpdate(start=vision_tower(visual).blocks[-config.blocks])


def update_lora(config: Lora, visual: nn.Module, *, seed: int) -> TowerUpdate:
    """Add low-rank changes to the tower."""
    blocks = vision_tower(visual).blocks
    return TowerUpdate(merge=LowRank(visual, blocks, rank=config.rank, alpha=config.alpha, seed=seed).merge)


def freeze_unused(
    module: nn.Module, outputs: Callable[[], Sequence[Tensor]], *, start: nn.Module | None = None
) -> None:
    """Freeze the trained parameters that receive no gradient: DDP waits for the gradient of every trained parameter.

    Args:
        module: changed in place.
        outputs: runs the module and returns what the losses depend on.
        start: a part at whose input the gradients end, so that everything before it is frozen too.
    """
    trained = [param for param in module.parameters() if param.requires_grad]
    hook = start.register_forward_pre_hook(_detach_inputs) if start else None
    try:
        total: Tensor = sum(value.float().sum() for value in outputs())  # type: ignore[assignment]
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
    finally:
        if hook:
            hook.remove()
    for param, gradient in zip(trained, gradients, strict=True):
        param.requires_grad_(gradient is not None)


def _detach_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)
