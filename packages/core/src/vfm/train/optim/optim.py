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

# Adam and SGD are torch's fused kernels on every device: they take a `found_inf` flag and leave weights and state
# unchanged where it is set, which keeps a NaN out without a synchronisation with the device. `Lamb` does the same; for
# timm's the host reads the flag.


def build_adamw(config: AdamW, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Return AdamW over the groups."""
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)


def build_lamb(config: LambConfig, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Return LAMB over the groups."""
    return Lamb(groups, lr, betas=config.betas, eps=config.eps)


def build_sgd(config: Sgd, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Return SGD with momentum over the groups."""
    sharded = any(isinstance(param, DTensor) for group in groups for param in group["params"])
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=not sharded)  # torch has none of shards


def build_timm(config: TimmOptimizer, groups: Groups, lr: float) -> torch.optim.Optimizer:
    """Return an optimizer of timm's factory over the groups.

    Raises:
        UserError: it does not have such an option, or the option does not fit.
    """
    takes = list(signature(get_optimizer_class(config.algorithm, bind_defaults=False)).parameters)
    allowed = [name for name in takes if name not in ("params", "lr", "weight_decay")]
    if unknown := [name for name in config.options if name not in allowed]:  # timm drops some of them
        raise UserError(
            f"optimizer.options: timm's {config.algorithm}: expected {', '.join(allowed)}, got {', '.join(unknown)}"
        )
    try:
        made: torch.optim.Optimizer = create_optimizer_v2(groups, config.algorithm, lr=lr, **config.options)
    except (AssertionError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"optimizer.options: timm's {config.algorithm}: {error}") from None
    return made


def check_optimizer(config: Optimizer) -> None:
    """Check that the optimizer can be built and takes a step, where timm's read most of their options.

    Raises:
        UserError: it cannot.
    """
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,))]
    groups = [{"params": [param], "lr_scale": 1.0, "weight_decay": 0.1} for param in params]
    optimizer: torch.optim.Optimizer = config.build(groups, 0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    try:
        step_if_finite(optimizer, torch.zeros(()))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"optimizer: {config.algorithm_name} cannot take a step with these settings: {error}") from None


def step_if_finite(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> None:
    """Take a step, unless the flag `found_inf` is 1; weights and state are then unchanged."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):  # torch's mark of optimizers that read the flag
        optimizer.grad_scale, optimizer.found_inf = None, found_inf  # type: ignore[attr-defined]
        optimizer.step()
    elif not bool(found_inf):
        optimizer.step()


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
                "rate": group.rate,
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


def set_lr(optimizer: torch.optim.Optimizer, lr: float, step: int = 0) -> None:
    """Set the scheduled learning rate, or a group's own one at this step (from 0), times each group's scale."""
    for group in optimizer.param_groups:
        own = group["rate"]
        group["lr"] = (lr if own is None else own(step)) * group["lr_scale"]
