"""The optimiser, its learning-rate schedule, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vfm.interfaces import Training
from vfm.train.lamb import Lamb
from vfm.train.task import Task


def lr_at(step: int, plan: Training) -> float:
    """The learning rate of optimiser step `step` (the first is 0), before a group's `lr_scale`.

    Rises linearly over `warmup_steps`, `lr` being reached at the last of them; then stays, or falls along half a cosine
    from `lr` towards `min_lr`, which it would reach at step `num_steps`: open_clip's schedule.
    """
    if step < plan.warmup_steps:
        return plan.lr * (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return plan.lr
    done = (step - plan.warmup_steps) / max(1, plan.num_steps - plan.warmup_steps)
    return plan.min_lr + (plan.lr - plan.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def build_optimizer(task: Task, plan: Training) -> torch.optim.Optimizer:
    """The plan's optimiser over the task's parameter groups.

    Adam and SGD are torch's fused kernels on every device: they take a `found_inf` flag and then leave weights and
    state alone, which is how a NaN is kept out without asking the device first; `Lamb` does so too.
    """
    _check_groups(task)
    groups = [
        {
            "params": group.params,
            "lr_scale": group.lr_scale,
            "weight_decay": plan.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group in task.parameter_groups()
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, fused=True)
    if plan.optimizer == "lamb":
        return Lamb(groups, plan.lr, betas=plan.betas, eps=plan.eps)
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, eps=plan.eps, fused=True)


def _check_groups(task: Task) -> None:
    """A parameter that a task forgets would silently stay as it is; one that it does not own would not be saved."""
    owned = {id(param): name for name, param in task.named_parameters() if param.requires_grad}
    grouped = {id(param) for group in task.parameter_groups() for param in group.params}
    if left_out := [name for key, name in owned.items() if key not in grouped]:
        raise ValueError(f"{type(task).__name__}.parameter_groups() leaves out {', '.join(left_out[:5])}")
    if grouped - set(owned):
        raise ValueError(f"{type(task).__name__}.parameter_groups() holds parameters that are not the task's own")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the scheduled rate, times each group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class Ema:
    """The exponential moving average of the trained weights: `average = decay * average + (1 - decay) * weights`.

    It begins at the weights before the first step and forgets them soon: after s steps the decay is at most
    (1 + s) / (10 + s), TensorFlow's rule. Without it 120 steps with a decay of 0.99 would export an average that is
    30 % random initialisation.
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        self.weights: dict[str, nn.Parameter] = {n: p for n, p in task.named_parameters() if p.requires_grad}
        self.average: dict[str, Tensor] = {name: param.detach().clone() for name, param in self.weights.items()}
        self.decay = decay

    def update(self, step: int) -> None:
        """Takes the weights after optimiser step `step` (the first is 0) in."""
        take_in = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
        take_in(list(self.average.values()), [p.detach() for p in self.weights.values()], 0)

    def load(self, average: dict[str, Tensor]) -> None:
        """Goes back to a checkpoint's average."""
        for name, value in self.average.items():
            value.copy_(average[name])

    @contextmanager
    def as_weights(self) -> Iterator[None]:
        """The average as the weights for a while; afterwards they are what they were, bit for bit."""
        weights = {name: param.detach().clone() for name, param in self.weights.items()}
        self.copy_to_weights()
        try:
            yield
        finally:
            _copy(weights, self.weights)

    def copy_to_weights(self) -> None:
        """Makes the average the weights."""
        _copy(self.average, self.weights)


@torch.no_grad()
def _copy(values: dict[str, Tensor], params: dict[str, nn.Parameter]) -> None:
    for name, param in params.items():
        param.copy_(values[name])
