"""LAMB: Adam's step, made for each tensor as long as its weights are; for batches of tens of thousands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Lamb(torch.optim.Optimizer):
    """LAMB as timm has it (NVIDIA's variant), without its clipping, which is the loop's.

    The step of a decayed tensor is scaled by |weights| / |step|; what has no weight decay takes Adam's own step.

    As torch's fused optimisers do, it leaves weights and state alone where `found_inf` is 1, without asking the device.

    Source: You et al. 2019, Large Batch Optimization for Deep Learning (arXiv:1904.00962), Algorithm 2.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, params: ParamsT, lr: float, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._move(param, group)

    def _move(self, param: Tensor, group: dict[str, Any]) -> None:
        if not (state := self.state[param]):
            # Not called `step`, which torch leaves on the CPU when a state is loaded.
            state["num_steps"] = torch.zeros((), device=param.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        bad = torch.zeros((), device=param.device) if self.found_inf is None else self.found_inf
        taken = 1 - bad  # 1 or 0: a step that is not taken adds nothing anywhere
        grad = param.grad.masked_fill(bad > 0, 0)  # type: ignore[union-attr]
        mean, square, count = state["exp_avg"], state["exp_avg_sq"], state["num_steps"]
        beta1, beta2 = group["betas"]
        mean.lerp_(grad, (1 - beta1) * taken)
        square.lerp_(grad.square(), (1 - beta2) * taken)
        count.add_(taken)
        step = (mean / _share(beta1, count)).div_((square / _share(beta2, count)).sqrt_().add_(group["eps"]))
        if decay := group["weight_decay"]:
            step.add_(param, alpha=decay)
            step.mul_(_ratio(param.norm(), step.norm()))
        param.sub_(step.mul_(group["lr"] * taken))


def _share(beta: float, count: Tensor) -> Tensor:
    """`1 - beta ** count`, what an average that began at zero has taken in; exact where beta is near 1."""
    return -torch.expm1(count.clamp(min=1) * math.log(beta)) if beta else torch.ones_like(count)


def _ratio(weights: Tensor, step: Tensor) -> Tensor:
    """How much longer weights are than their step; 1 where either is nothing."""
    return torch.where((weights > 0) & (step > 0), weights / step, torch.ones_like(step))
