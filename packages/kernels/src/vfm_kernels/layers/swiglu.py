"""SwiGLU with its sub-LayerNorm (EVA-02), over the true width of a padded hidden layer."""

# R rows (tokens), W true width, P width of the buffer

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_kernels.dispatch.dispatch import fused, launchers, runs_triton
from vfm_kernels.dispatch.library import Op
from vfm_kernels.dispatch.precision import at_least_fp32


def swiglu_subln(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute `layer_norm(silu(gate) * value)` over the first W columns. The other columns of the result are zero.

    W is the width of the norm's weight, so linear layers may be padded to a width that suits tensor cores (2730 to
    2752) without a change of the result (see `pad_swiglu`). Without padding it is timm's `SwiGLU` between its linear
    layers.

    Args:
        gate: (..., P). Columns from W on are ignored.
        value: (..., P).
        weight: (W,), W <= P, any float dtype.
        bias: (W,).
        eps: Added to the variance.

    Returns:
        (..., P) in the dtype of `gate`. Statistics are fp32 (fp64 for fp64).

    Raises:
        ValueError: If shapes are inconsistent.

    Source: Fang et al. 2023, EVA-02 (arXiv:2303.11331), section 2.1, and Shazeer 2020, GLU variants (arXiv:2002.05202).
    """
    if gate.shape != value.shape or weight.shape != bias.shape or len(weight) > gate.shape[-1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (gate, value, weight, bias))
        raise ValueError(f"expected gate, value, weight, bias of (..., P), (..., P), (W,), (W,), W <= P, got {shapes}")
    if not fused("swiglu_subln", gate):
        return swiglu_subln_plain(gate, value, weight, bias, eps)
    rows = (tensor.flatten(0, -2) for tensor in (gate, value))
    out, _, _ = _SWIGLU(*rows, weight, bias, eps)
    normed: Tensor = out.view(gate.shape)
    return normed


def swiglu_subln_plain(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute `swiglu_subln` in plain torch."""
    width = len(weight)
    hidden = at_least_fp32(F.silu(at_least_fp32(gate[..., :width])) * value[..., :width])
    with torch.autocast(gate.device.type, enabled=False):
        normed = F.layer_norm(hidden, (width,), at_least_fp32(weight), at_least_fp32(bias), eps)
    return F.pad(normed.to(gate.dtype), (0, gate.shape[-1] - width))


def _run(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if runs_triton(gate):
        buffers = forward_buffers(gate, value, weight, bias, eps)
        launchers().swiglu_forward(gate, value, weight, bias, eps, *buffers)
        return buffers
    hidden = _hidden(gate, value, len(weight))
    variance, mean = torch.var_mean(hidden, dim=-1, correction=0)
    return swiglu_subln_plain(gate, value, weight, bias, eps), mean, (variance + eps).rsqrt()


def _run_backward(
    d_out: Tensor, gate: Tensor, value: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of gate, value, weight and bias in closed form."""
    if runs_triton(gate):
        buffers = backward_buffers(d_out, gate, value, weight, mean, rstd)
        launchers().swiglu_backward(d_out, gate, value, weight, mean, rstd, *buffers)
        return buffers
    width = len(weight)
    padding = gate.shape[-1] - len(weight)
    g = at_least_fp32(gate[:, :width])
    v = at_least_fp32(value[:, :width])
    dy = at_least_fp32(d_out[:, :width])
    sigmoid = g.sigmoid()
    normed = (g * sigmoid * v - mean[:, None]) * rstd[:, None]
    d_normed = dy * weight
    along = (d_normed * normed).mean(dim=1, keepdim=True)
    d_hidden = (d_normed - d_normed.mean(dim=1, keepdim=True) - normed * along) * rstd[:, None]
    # The derivative of silu, sigmoid(g) (1 + g (1 - sigmoid(g))).
    d_gate = F.pad(d_hidden * v * sigmoid * (1 + g * (1 - sigmoid)), (0, padding)).to(gate.dtype)
    d_value = F.pad(d_hidden * g * sigmoid, (0, padding)).to(gate.dtype)
    return d_gate, d_value, (dy * normed).sum(dim=0).to(weight.dtype), dy.sum(dim=0).to(weight.dtype)


def _hidden(gate: Tensor, value: Tensor, width: int) -> Tensor:
    return F.silu(at_least_fp32(gate[:, :width])) * at_least_fp32(value[:, :width])


def forward_buffers(
    gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the result (R, P) and the norm's statistics (R,).

    The statistics are the mean and the inverse standard deviation of each row.
    """
    statistics = torch.promote_types(gate.dtype, torch.float32)
    mean = torch.empty(len(gate), dtype=statistics, device=gate.device)
    rstd = torch.empty_like(mean)
    return torch.empty_like(gate, memory_format=torch.contiguous_format), mean, rstd


def backward_buffers(
    d_out: Tensor, gate: Tensor, value: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the four gradients."""
    d_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    d_value = torch.empty_like(d_gate)
    return d_gate, d_value, weight.new_empty(len(weight)), weight.new_empty(len(weight))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    gate, value, weight, _, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(gate, value, weight, mean, rstd)


def _backward(ctx: Any, d_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_SWIGLU_BACKWARD(d_out, *ctx.saved_tensors), None


_SWIGLU = Op(
    "swiglu_subln(Tensor gate, Tensor value, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
    _run,
    forward_buffers,
)
_SWIGLU_BACKWARD = Op(
    "swiglu_subln_backward(Tensor d_out, Tensor gate, Tensor value, Tensor weight, Tensor mean, Tensor rstd)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    backward_buffers,
)
_SWIGLU.differentiate(_backward, _keep)
