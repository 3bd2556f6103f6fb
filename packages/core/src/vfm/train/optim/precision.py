"""Reduced precision in the passes of a training, with loss scaling and full-precision weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vfm.train.trained import trained_parameters

Precision = Literal["auto", "fp32", "amp_bf16", "amp_fp16", "amp_fp8", "bf16"]
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
AUTOCAST = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16, "amp_fp8": torch.bfloat16, "bf16": torch.bfloat16}


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Resolve the precision `auto` for a device.

    It is amp_bf16 on CUDA devices that support bf16, else fp32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return "amp_bf16"
    return "fp32"


class LossScale:
    """The loss scale for fp16, as in `torch.amp.GradScaler`, but without synchronising with the device.

    Gradients that overflow fp16 become infinite. Such a step is not taken, and the factor is halved. After `interval`
    successful steps it is doubled.

    Source: Micikevicius et al. 2018, Mixed Precision Training (arXiv:1710.03740), section 3.2.
    """

    def __init__(self, device: torch.device, initial: float = 2.0**16, interval: int = 2000) -> None:
        # The initial factor and the interval are the defaults of torch.amp.GradScaler. All of it stays on the device,
        # where `torch.where` replaces conditions that would wait for it.
        self.factor = torch.tensor(initial, device=device)
        self.taken = torch.zeros((), device=device)  # steps since the factor changed
        self.interval = interval

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the factor, in place."""
        torch._foreach_mul_(list(gradients), 1 / self.factor)

    def overflow(self, grad_norm: Tensor) -> Tensor:
        """Check whether gradients are infinite because the factor is too large. This requires a factor above 1."""
        return ~torch.isfinite(grad_norm) & (self.factor > 1)

    def update(self, overflow: Tensor) -> None:
        """Adapt the factor after a step."""
        taken = self.taken + 1
        grown = taken >= self.interval
        self.factor = torch.where(overflow, self.factor / 2, torch.where(grown, self.factor * 2, self.factor))
        self.taken = torch.where(overflow | grown, torch.zeros_like(taken), taken)

    def state(self) -> dict[str, float]:
        """Build the state for a checkpoint."""
        return {"factor": float(self.factor), "taken": float(self.taken)}

    def restore(self, state: dict[str, float]) -> None:
        """Restore the state of a checkpoint."""
        self.factor.fill_(state["factor"])
        self.taken.fill_(state["taken"])


class FullWeights:
    """fp32 master weights of a model that computes with bf16 weights (`precision: bf16`).

    A step of AdamW at 1e-4 is smaller than the smallest change of most weights in bf16. The optimizer, averages and
    checkpoints therefore use the fp32 weights. `in_place` puts them into the parameters. The model and its gradients
    are in bf16.

    Args:
        module: The model, whose trained parameters are rounded to bf16.
    """

    def __init__(self, module: nn.Module) -> None:
        self.params = trained_parameters(module)
        self.full = []
        self.rounded = []
        for param in self.params:
            self.full.append(param.data)
            self.rounded.append(param.data.bfloat16())
        self._give(self.rounded)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the fp32 weights, with gradients in fp32, as the parameters within the context."""
        # A gradient must have the type of its weight, so it is kept aside until the weight has changed its type.
        grads = [None if param.grad is None else param.grad.float() for param in self.params]
        self._give(self.full)
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        try:
            yield
        finally:
            self.full = [param.data for param in self.params]
            torch._foreach_copy_(self.rounded, self.full)
            self._give(self.rounded)

    def end(self) -> None:
        """Leave the fp32 weights in the parameters."""
        self._give(self.full)

    def _give(self, values: Sequence[Tensor]) -> None:
        for param, value in zip(self.params, values, strict=True):
            param.grad = None  # its type must be that of the weight
            param.data = value


class RoundedMatrices:
    """Frozen linear layers and convolutions, stored in the type to which autocast would cast them in every pass.

    The results are the same, bit for bit. The fp32 weights are kept in CPU memory.

    Args:
        modules: Frozen models. Layers whose weights are not in fp32 are unchanged.
        dtype: The type of autocast.
    """

    def __init__(self, modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
        params: dict[int, nn.Parameter] = {}  # by id, since layers may share parameters
        for module in modules:
            for layer in module.modules():
                if not isinstance(layer, MATRICES):
                    continue
                for param in layer.parameters(recurse=False):
                    if param.dtype == torch.float32:
                        params[id(param)] = param
        self.params = list(params.values())
        self.full = []
        for param in self.params:
            self.full.append(param.data.cpu())  # since the point of rounding is to free memory of the device
            param.data = param.data.to(dtype)

    def end(self) -> None:
        """Restore the fp32 weights."""
        for param, full in zip(self.params, self.full, strict=True):
            param.data = full.to(param.device)


class Numerics:
    """The precision of training steps.

    Args:
        precision: The configured precision.
        task: The trained task. With `bf16` its weights are rounded.
        device: Device of the task.
        frozen: Frozen models that only the training steps use, without gradients for their parameters.
    """

    def __init__(
        self, precision: Precision, task: nn.Module, device: torch.device, frozen: Iterable[nn.Module] = ()
    ) -> None:
        self.precision = resolve_precision(precision, device)
        self.device = device
        self.scale = LossScale(device) if self.precision == "amp_fp16" else None
        self.full = FullWeights(task) if self.precision == "bf16" else None
        self.frozen = RoundedMatrices(frozen, self.half) if self.half else None

    @property
    def half(self) -> torch.dtype | None:
        """Type of matrix products, bf16 or fp16. It is None in fp32."""
        return AUTOCAST.get(self.precision)

    def autocast(self) -> AbstractContextManager[Any]:
        """Create the context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled with fp16."""
        torch.autograd.backward(loss * self.scale.factor if self.scale else loss)

    def full_weights(self) -> AbstractContextManager[None]:
        """Create a context in which parameters and gradients are in fp32."""
        if self.full:
            return self.full.in_place()
        return nullcontext()

    def end(self) -> None:
        """Leave the fp32 weights in the parameters, including frozen models."""
        if self.full:
            self.full.end()
        if self.frozen:
            self.frozen.end()

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the loss scale of fp16, in place."""
        if self.scale:
            self.scale.unscale(gradients)

    def expected(self, grad_norm: Tensor) -> Tensor:
        """Adapt the gradient norm for the check for infinity: zero if only the loss scale of fp16 makes it infinite."""
        if not self.scale:
            return grad_norm
        return grad_norm.masked_fill(self.scale.overflow(grad_norm), 0.0)

    def skips(self, found_inf: Tensor, grad_norm: Tensor) -> Tensor:
        """Compute the flag for skipping a step, and adapt the loss scale of fp16."""
        if not self.scale:
            return found_inf
        overflow = self.scale.overflow(grad_norm)
        self.scale.update(overflow)
        return torch.maximum(found_inf, overflow.float())

    def state(self) -> dict[str, Any]:
        """Build the state for a checkpoint."""
        if not self.scale:
            return {}
        return {"loss_scale": self.scale.state()}

    def restore(self, facts: dict[str, Any]) -> None:
        """Restore the state from a checkpoint, if it has one for this precision."""
        if self.scale and "loss_scale" in facts:
            self.scale.restore(facts["loss_scale"])
