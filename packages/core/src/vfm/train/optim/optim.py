"""Optimizers over a task's parameter groups."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from torch import Tensor
from torch.distributed.tensor import DTensor

from vfm.base import UserError
from vfm.interfaces import AdamW, LambConfig, Optimizer, Sgd, TimmOptimizer
from vfm.train.optim.lamb import Lamb
from vfm.train.task import Task

Groups = list[dict[str, Any]]
"""torch's parameter groups, with `lr_scale`, `rate` and `weight_decay`."""

# Adam and SGD use torch's fused kernels on every device. They take a `found_inf` flag and leave weights and state
# unchanged if it is set, which keeps NaN out without synchronising with the device. `Lamb` does the same. For timm's
# optimizers the host reads the flag.


def build_adamw(config: AdamW, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Create AdamW.

    Args:
        config: Settings of the optimizer.
        groups: Parameter groups.
        lr: Peak learning rate.
    """
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)


def build_lamb(config: LambConfig, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Create LAMB.

    Args:
        config: Settings of the optimizer.
        groups: Parameter groups.
        lr: Peak learning rate.
    """
    return Lamb(groups, lr, betas=config.betas, eps=config.eps)


def build_sgd(config: Sgd, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Create SGD with momentum.

    Args:
        config: Settings of the optimizer.
        groups: Parameter groups.
        lr: Peak learning rate.
    """
    sharded = False
    for group in groups:
        for param in group["params"]:
            sharded = sharded or isinstance(param, DTensor)
    # torch's fused SGD does not support sharded parameters.
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=not sharded)


def build_timm(config: TimmOptimizer, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Create an optimizer with timm's factory.

    Args:
        config: Name and options of the optimizer.
        groups: Parameter groups.
        lr: Peak learning rate.

    Raises:
        UserError: If the optimizer does not have an option, or its value is invalid.
    """
    takes = list(signature(get_optimizer_class(config.algorithm, bind_defaults=False)).parameters)
    allowed = [name for name in takes if name not in ("params", "lr", "weight_decay")]
    unknown = [name for name in config.options if name not in allowed]
    if unknown:  # timm would silently drop some of them
        raise UserError(
            f"optimizer.options: timm's {config.algorithm}: expected {', '.join(allowed)}, got {', '.join(unknown)}"
        )
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, config.algorithm, lr=lr, **config.options)
    except (AssertionError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"optimizer.options: timm's {config.algorithm}: {error}") from None
    return optimizer


def check_optimizer(config: Optimizer) -> None:
    """Check that the optimizer can be built and can take a step, as timm's optimizers read most options in a step.

    Raises:
        UserError: If the optimizer does not work with its settings.
    """
    groups = []
    for shape in ((2, 2), (2,)):  # a matrix and a vector, since some optimizers treat them differently
        param = torch.nn.Parameter(torch.ones(shape))
        param.grad = torch.ones_like(param)
        groups.append({"params": [param], "lr_scale": 1.0, "weight_decay": 0.1})
    optimizer: torch.optim.Optimizer = config.build(groups, 0.1)
    try:
        step_if_finite(optimizer, torch.zeros(()))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"optimizer: {config.algorithm_name} cannot take a step with these settings: {error}") from None


def step_if_finite(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> None:
    """Take a step unless the flag `found_inf` is 1. Weights and state then stay unchanged."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):  # torch's mark of optimizers that read the flag
        optimizer.grad_scale, optimizer.found_inf = None, found_inf  # type: ignore[attr-defined]
        optimizer.step()
    elif not bool(found_inf):
        optimizer.step()


def build_optimizer(task: Task[Any], config: Optimizer, lr: float) -> torch.optim.Optimizer:
    """Build the configured optimizer for the parameter groups of a task.

    Args:
        task: Task whose parameters are trained.
        config: Settings of the optimizer.
        lr: Peak learning rate.

    Raises:
        ValueError: If the groups lack a trained parameter, or have a parameter that the task does not own.
    """
    grouped: set[int] = set()
    torch_groups = []
    for group in task.parameter_groups():
        grouped.update(map(id, group.params))
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        torch_groups.append(
            {"params": group.params, "lr_scale": group.lr_scale, "rate": group.rate, "weight_decay": decay}
        )
    _check_groups(task, grouped)
    optimizer: torch.optim.Optimizer = config.build(torch_groups, lr)
    return optimizer


def _check_groups(task: Task[Any], grouped: set[int]) -> None:
    """Check the groups, as a missing parameter would silently stay unchanged, and a foreign one would not be saved."""
    owned = set()
    left_out = []
    for name, param in task.named_parameters():
        if param.requires_grad:
            owned.add(id(param))
            if id(param) not in grouped:
                left_out.append(name)
    if left_out:
        raise ValueError(f"{type(task).__name__}.parameter_groups() leaves out {', '.join(left_out[:5])}")
    if grouped - owned:
        raise ValueError(f"{type(task).__name__}.parameter_groups() has parameters that the task does not own")


def set_lr(optimizer: torch.optim.Optimizer, lr: float, step: int = 0) -> None:
    """Set the learning rate of each group.

    It is the scheduled rate, or the group's rate at this step, times the scale of the group.

    Args:
        optimizer: The optimizer.
        lr: Scheduled learning rate.
        step: Number of the step, from 0.
    """
    for group in optimizer.param_groups:
        group_rate = group["rate"]
        scheduled = lr if group_rate is None else group_rate(step)
        group["lr"] = scheduled * group["lr_scale"]
