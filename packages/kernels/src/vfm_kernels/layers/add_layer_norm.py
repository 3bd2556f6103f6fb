"""The residual sum of a transformer block and the norm after it, in one pass over the tokens."""

# B batch, R rows (tokens of all samples), D width

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_kernels.dispatch.dispatch import fused, launchers, runs_triton
from vfm_kernels.dispatch.library import Op
from vfm_kernels.dispatch.precision import at_least_fp32


def add_layer_norm(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    layer_scale: Tensor | None = None,
    drop_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream, and apply the layer norm to the sum.

    It computes `summed = residual + drop_scale * layer_scale * branch` and the norm of `summed` in one pass.

    Args:
        residual: (B, ..., D), the residual stream, often fp32 where the branch is bf16.
        branch: (B, ..., D), output of attention or an MLP, to be added to the residual.
        weight: (D,), weight of the norm.
        bias: (D,), bias of the norm.
        eps: Added to the variance.
        layer_scale: (D,), a factor per channel.
        drop_scale: (B,), a factor per sample: drop path's 0 or 1 / (1 - rate). With factor 0 the branch is not read.
            Not differentiated.

    Returns:
        summed: (B, ..., D) in the dtype that torch's sum would have.
        normed: (B, ..., D) in the dtype of `branch`. Statistics are fp32 (fp64 for fp64).

    Raises:
        ValueError: If shapes are inconsistent.

    Source: layer scale by Touvron et al. 2021 (arXiv:2103.17239), drop path by Huang et al. 2016 (arXiv:1603.09382).
    """
    width = residual.shape[-1]
    parameters = [parameter for parameter in (weight, bias, layer_scale) if parameter is not None]
    if residual.shape != branch.shape or any(parameter.shape != (width,) for parameter in parameters):
        raise ValueError(
            f"expected residual and branch of one shape and parameters of shape ({width},),"
            f" got residual {tuple(residual.shape)}, branch {tuple(branch.shape)}"
        )
    if drop_scale is not None and drop_scale.shape != residual.shape[:1]:
        raise ValueError(f"expected drop_scale of shape ({len(residual)},), got {tuple(drop_scale.shape)}")
    if not fused("add_layer_norm", residual, branch):
        return add_layer_norm_plain(residual, branch, weight, bias, eps, layer_scale, drop_scale)
    rows = (residual.reshape(-1, width), branch.reshape(-1, width))
    summed, normed, _, _ = _ADD(*rows, weight, bias, layer_scale, drop_scale, eps)
    return summed.view(residual.shape), normed.view(residual.shape)


def add_layer_norm_plain(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    layer_scale: Tensor | None,
    drop_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute `add_layer_norm` in plain torch."""
    update = branch if layer_scale is None else branch * layer_scale
    if drop_scale is not None:
        factor = drop_scale.to(update.dtype).view(-1, *[1] * (branch.ndim - 1))
        # A dropped branch must not matter even if it is infinite, and 0 times infinity is NaN.
        update = torch.where(factor == 0, 0.0, update * factor)
    summed = residual + update
    with torch.autocast(residual.device.type, enabled=False):
        normed = F.layer_norm(at_least_fp32(summed), weight.shape, at_least_fp32(weight), at_least_fp32(bias), eps)
    return summed, normed.to(branch.dtype)


def _run(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer_scale: Tensor | None,
    drop_scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if runs_triton(residual, branch):
        buffers = forward_buffers(residual, branch, weight, bias, layer_scale, drop_scale, eps)
        launchers().add_layer_norm_forward(residual, branch, weight, bias, layer_scale, drop_scale, eps, *buffers)
        return buffers
    factor = _per_row(drop_scale, len(residual))
    summed, normed = add_layer_norm_plain(residual, branch, weight, bias, eps, layer_scale, factor)
    variance, mean = torch.var_mean(at_least_fp32(summed), dim=-1, correction=0)
    return summed, normed, mean, (variance + eps).rsqrt()


def _run_backward(
    d_summed: Tensor,
    d_normed: Tensor,
    summed: Tensor,
    branch: Tensor,
    weight: Tensor,
    layer_scale: Tensor | None,
    drop_scale: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of residual, branch, weight, bias and layer scale in closed form.

    Layer scale's gradient is empty without a layer scale, and the branch's is empty where it equals the residual's.
    """
    inputs = (d_summed, d_normed, summed, branch, weight, layer_scale, drop_scale, mean, rstd)
    buffers = backward_buffers(*inputs)
    if runs_triton(summed, branch):
        launchers().add_layer_norm_backward(*inputs, *buffers)
        return buffers
    x, dy = at_least_fp32(summed), at_least_fp32(d_normed)
    xhat = (x - mean[:, None]) * rstd[:, None]
    d_xhat = dy * weight
    # A layer norm ignores shifts and scalings of its input, so the gradient loses its parts along both.
    along = (d_xhat * xhat).mean(dim=1, keepdim=True)
    dx = at_least_fp32(d_summed) + (d_xhat - d_xhat.mean(dim=1, keepdim=True) - xhat * along) * rstd[:, None]
    d_residual, d_branch, d_weight, d_bias, d_scale = buffers
    d_residual.copy_(dx)
    factor = _per_row(drop_scale, len(summed))
    update = dx if factor is None else dx * factor[:, None]
    if layer_scale is not None:
        d_scale.copy_((update * branch).sum(dim=0))
        update = update * layer_scale
    if len(d_branch):
        d_branch.copy_(update)
    return d_residual, d_branch, d_weight.copy_((dy * xhat).sum(dim=0)), d_bias.copy_(dy.sum(dim=0)), d_scale


def _per_row(drop_scale: Tensor | None, num_rows: int) -> Tensor | None:
    """Repeat a factor per sample, (B,), for the sample's rows, (R,)."""
    if drop_scale is None:
        return None
    return drop_scale.repeat_interleave(num_rows // max(len(drop_scale), 1))


def forward_buffers(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer_scale: Tensor | None,
    drop_scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the results of the forward pass.

    Returns:
        The sum, its norm, and the mean and inverse standard deviation of each row, (R,).
    """
    dtype = torch.promote_types(residual.dtype, branch.dtype)
    if layer_scale is not None:
        dtype = torch.promote_types(dtype, layer_scale.dtype)
    statistics = torch.promote_types(dtype, torch.float32)
    mean = residual.new_empty(len(residual), dtype=statistics)
    rstd = torch.empty_like(mean)
    return residual.new_empty(residual.shape, dtype=dtype), branch.new_empty(branch.shape), mean, rstd


def backward_buffers(
    d_summed: Tensor,
    d_normed: Tensor,
    summed: Tensor,
    branch: Tensor,
    weight: Tensor,
    layer_scale: Tensor | None,
    drop_scale: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate the five gradients."""
    # A plain sum has one gradient for both of its terms, which is not written twice.
    same = layer_scale is None and drop_scale is None and branch.dtype == summed.dtype
    d_branch = branch.new_empty(0 if same else branch.shape)
    if layer_scale is None:
        d_scale = weight.new_empty(0)
    else:
        d_scale = layer_scale.new_empty(layer_scale.shape)
    return (
        summed.new_empty(summed.shape),
        d_branch,
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape),
        d_scale,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    residual, branch, weight, _, layer_scale, drop_scale, _ = inputs
    summed, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.residual_dtype = residual.dtype
    ctx.save_for_backward(summed, branch, weight, layer_scale, drop_scale, mean, rstd)


def _backward(ctx: Any, d_summed: Tensor, d_normed: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: activation checkpointing allows no second access
    d_residual, d_branch, d_weight, d_bias, d_scale = _ADD_BACKWARD(d_summed, d_normed, *saved)
    if not d_branch.shape[0]:
        d_branch = d_residual
    if saved[3] is None:  # no layer scale
        d_scale = None
    return d_residual.to(ctx.residual_dtype), d_branch, d_weight, d_bias, d_scale, None, None


_ADD = Op(
    "add_layer_norm(Tensor residual, Tensor branch, Tensor weight, Tensor bias, Tensor? layer_scale,"
    " Tensor? drop_scale, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    forward_buffers,
)
_ADD_BACKWARD = Op(
    "add_layer_norm_backward(Tensor d_summed, Tensor d_normed, Tensor summed, Tensor branch, Tensor weight,"
    " Tensor? layer_scale, Tensor? drop_scale, Tensor mean, Tensor rstd)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    backward_buffers,
)
_ADD.differentiate(_backward, _keep)
