"""LAMB, which scales Adam's step by the norm of each weight tensor, for batches of tens of thousands of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Lamb(torch.optim.Optimizer):
    """LAMB as in timm (NVIDIA's variant), but without gradient clipping. The training loop clips gradients.

    The step of a decayed tensor is scaled by |weights| / |step|. Tensors without weight decay take Adam's step.

    Like torch's fused optimizers, it leaves weights and state unchanged if `found_inf` is 1, without synchronising with
    the device.

    Source: You et al. 2019, Large Batch Optimization for Deep Learning (arXiv:1904.00962), Algorithm 2.
    """

    found_inf: Tensor | None = None
    _step_supports_amp_scaling = True  # torch's mark of optimizers that read `found_inf`

    def __init__(
        self, params: ParamsT, lr: float, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step of every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._move(param, group)

    def _move(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            # Not named `step`: torch leaves a state of that name on the CPU when it is loaded.
            state["num_steps"] = torch.zeros((), device=param.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        if self.found_inf is None:
            bad = torch.zeros((), device=param.device)
        else:
            bad = self.found_inf
        taken = 1 - bad  # 0 makes all updates below no-ops
        # Not multiplied by `taken`, as 0 times NaN is NaN.
        grad = param.grad.masked_fill(bad > 0, 0)  # type: ignore[union-attr]
        mean = state["exp_avg"]
        square = state["exp_avg_sq"]
        count = state["num_steps"]
        beta1, beta2 = group["betas"]
        mean.lerp_(grad, (1 - beta1) * taken)
        square.lerp_(grad.square(), (1 - beta2) * taken)
        count.add_(taken)
        step = (mean / _share(beta1, count)).div_((square / _share(beta2, count)).sqrt_().add_(group["eps"]))
        decay = group["weight_decay"]
        if decay:
            step.add_(param, alpha=decay)
            step.mul_(_ratio(param.norm(), step.norm()))
        param.sub_(step.mul_(group["lr"] * taken))


def _share(beta: float, count: Tensor) -> Tensor:
    """Compute `1 - beta ** count`, the bias correction of an average that starts at zero, exactly for beta near 1."""
    if not beta:
        return torch.ones_like(count)
    return -torch.expm1(count.clamp(min=1) * math.log(beta))


def _ratio(weights: Tensor, step: Tensor) -> Tensor:
    """Compute |weights| / |step|, or 1 where either is zero."""
    return torch.where((weights > 0) & (step > 0), weights / step, torch.ones_like(step))
