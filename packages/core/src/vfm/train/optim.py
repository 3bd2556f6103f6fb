"""Optimizers over a task's parameter groups."""

from __future__ import annotations

from typing import Any

import torch

from vfm.interfaces import AdamW, Optimizer, Sgd
from vfm.interfaces import Lamb as LambConfig
from vfm.train.lamb import Lamb
from vfm.train.task import Task

Groups = list[dict[str, Any]]
"""torch's parameter groups, with `lr_scale` and `weight_decay`."""

# Adam and SGD are torch's fused kernels on every device: they take a `found_inf` flag and leave weights and state
# unchanged where it is set, which keeps a NaN out without a synchronisation with the device. `Lamb` does the same.


def build_adamw(config: AdamW, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Return AdamW over the groups."""
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)


def build_lamb(config: LambConfig, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Return LAMB over the groups."""
    return Lamb(groups, lr, betas=config.betas, eps=config.eps)


def build_sgd(config: Sgd, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Return SGD with momentum over the groups."""
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)


def build_optimizer(task: Task[Any], config: Optimizer, lr: float) -> torch.optim.Optimizer:
    """Return the configured optimizer over the task's parameter groups.

    Raises:
        ValueError: the groups leave out a trained parameter, or hold one that the task does not own.
    """
    groups = task.parameter_groups()
    _check_groups(task, {id(param) for group in groups for param in group.params})
    built: torch.optim.Optimizer = config.build(
        [
            {
                "params": group.params,
                "lr_scale": group.lr_scale,
                "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
            }
            for group in groups
        ],
        lr,
    )
    return built


def _check_groups(task: Task[Any], grouped: set[int]) -> None:
    """Check the groups: a parameter left out would silently stay unchanged, a foreign one would not be saved."""
    owned = {id(param): name for name, param in task.named_parameters() if param.requires_grad}
    if left_out := [name for key, name in owned.items() if key not in grouped]:
        raise ValueError(f"{type(task).__name__}.parameter_groups() leaves out {', '.join(left_out[:5])}")
    if grouped - set(owned):
        raise ValueError(f"{type(task).__name__}.parameter_groups() has parameters that the task does not own")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the scheduled learning rate, times each group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
