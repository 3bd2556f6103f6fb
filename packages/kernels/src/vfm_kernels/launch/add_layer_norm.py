"""Launches the residual sum and norm, forward and backward."""

import torch
from torch import Tensor

from vfm_kernels.add_layer_norm import backward_buffers, forward_buffers
from vfm_kernels.launch import block_of, launch, persistent_programs, settings, with_adjacent_columns
from vfm_kernels.triton.add_layer_norm import add_layer_norm_backward_kernel, add_layer_norm_forward_kernel


def forward(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer_scale: Tensor | None,
    drop_scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op of the same name: rows (R, D), parameters (D,), a factor for each sample (B,)."""
    residual, branch = with_adjacent_columns(residual), with_adjacent_columns(branch)
    summed, normed, mean, rstd = forward_buffers(residual, branch, weight, bias, layer_scale, drop_scale, eps)
    num_rows, width = residual.shape
    chosen = settings("add_layer_norm_forward", width, residual.device)
    launch(
        add_layer_norm_forward_kernel,
        (persistent_programs(num_rows, chosen.pop("programs_per_multiprocessor"), residual.device),),
        residual.device,
        residual,
        branch,
        layer_scale,
        drop_scale,
        weight,
        bias,
        summed,
        normed,
        mean,
        rstd,
        num_rows,
        num_rows // len(drop_scale) if drop_scale is not None else 1,
        width,
        residual.stride(0),
        branch.stride(0),
        eps,
        HAS_SCALE=layer_scale is not None,
        HAS_DROP=drop_scale is not None,
        BLOCK=block_of(width),
        **chosen,
    )
    return summed, normed, mean, rstd


def backward(
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
    """Its gradients; those of the parameters are summed over programs, in a fixed order."""
    d_summed, d_normed, branch = (with_adjacent_columns(rows) for rows in (d_summed, d_normed, branch))
    num_rows, width = summed.shape
    d_residual, d_branch, d_weight, d_bias, d_scale = backward_buffers(
        d_summed, d_normed, summed, branch, weight, layer_scale, drop_scale, mean, rstd
    )
    chosen = settings("add_layer_norm_backward", width, summed.device)
    programs = persistent_programs(num_rows, chosen.pop("programs_per_multiprocessor"), summed.device)
    partials = torch.empty(3 if layer_scale is not None else 2, programs, width, device=summed.device)
    launch(
        add_layer_norm_backward_kernel,
        (programs,),
        summed.device,
        d_summed,
        d_normed,
        summed,
        branch,
        layer_scale,
        drop_scale,
        weight,
        mean,
        rstd,
        d_residual,
        d_branch,
        *partials[:2],
        partials[-1],
        num_rows,
        num_rows // len(drop_scale) if drop_scale is not None else 1,
        width,
        d_summed.stride(0),
        d_normed.stride(0),
        branch.stride(0),
        HAS_SCALE=layer_scale is not None,
        HAS_DROP=drop_scale is not None,
        WRITE_BRANCH=d_branch.numel() > 0,
        BLOCK=block_of(width),
        **chosen,
    )
    sums = partials.sum(dim=1)
    for d_parameter, total in zip((d_weight, d_bias, d_scale), sums, strict=False):
        d_parameter.copy_(total)
    return d_residual, d_branch, d_weight, d_bias, d_scale
