"""Kernels of the residual sum with layer scale and drop path, and of the layer norm after it."""

# R rows (tokens of all samples), D width, B samples
# mypy: ignore-errors

import torch
import triton
import triton.language as tl
from torch import Tensor

from vfm_kernels.triton.launch import block_of, launch, persistent_programs, settings, with_adjacent_columns


@triton.jit
def add_layer_norm_forward_kernel(
    residual,
    branch,
    layer_scale,
    drop_scale,
    weight,
    bias,
    summed,
    normed,
    means,
    rstds,
    num_rows,
    rows_per_sample,
    width,
    residual_row,
    branch_row,
    eps,
    HAS_SCALE: tl.constexpr,
    HAS_DROP: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Loop over rows in each program, so that parameters are read once. A dropped sample's branch is not read."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_SCALE:
        scale = tl.load(layer_scale + columns, mask=inside, other=0.0).to(tl.float32)
    # Software pipelining loads the next row while this one is computed; int64, as 2^31 elements are 2 M rows of 1024.
    for row in tl.range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0), num_stages=STAGES):
        x = tl.load(residual + row * residual_row + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_DROP:
            factor = tl.load(drop_scale + row // rows_per_sample).to(tl.float32)
            read = tl.where(factor != 0.0, inside, False)
            update = tl.load(branch + row * branch_row + columns, mask=read, other=0.0).to(tl.float32) * factor
        else:
            update = tl.load(branch + row * branch_row + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_SCALE:
            update *= scale
        total = (x + update).to(summed.dtype.element_ty)
        tl.store(summed + row * width + columns, total, mask=inside)
        x = total.to(tl.float32)  # rounded as it is stored, because the backward reads the stored sum
        mean = tl.sum(x, axis=0) / width
        centred = tl.where(inside, x - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
        y = centred * rstd * w + b
        tl.store(normed + row * width + columns, y.to(normed.dtype.element_ty), mask=inside)
        tl.store(means + row, mean)
        tl.store(rstds + row, rstd)


@triton.jit
def add_layer_norm_backward_kernel(
    d_summed,
    d_normed,
    summed,
    branch,
    layer_scale,
    drop_scale,
    weight,
    means,
    rstds,
    d_residual,
    d_branch,
    d_weights,
    d_biases,
    d_scales,
    num_rows,
    rows_per_sample,
    width,
    d_summed_row,
    d_normed_row,
    branch_row,
    HAS_SCALE: tl.constexpr,
    HAS_DROP: tl.constexpr,
    WRITE_BRANCH: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Store each program's sums for weight, bias and layer scale as one row of `d_weights`, `d_biases`, `d_scales`.

    The rows are added afterwards in a fixed order. Atomics would add them in another order each time.
    """
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK,), tl.float32)
    d_bias = tl.zeros((BLOCK,), tl.float32)
    if HAS_SCALE:
        scale = tl.load(layer_scale + columns, mask=inside, other=0.0).to(tl.float32)
        d_scale = tl.zeros((BLOCK,), tl.float32)
    for row in tl.range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0), num_stages=STAGES):
        dy = tl.load(d_normed + row * d_normed_row + columns, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(summed + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        dx = tl.load(d_summed + row * d_summed_row + columns, mask=inside, other=0.0).to(tl.float32)
        mean, rstd = tl.load(means + row), tl.load(rstds + row)
        xhat = tl.where(inside, (x - mean) * rstd, 0.0)
        d_weight += dy * xhat
        d_bias += dy
        dy *= w
        dx += (dy - tl.sum(dy, axis=0) / width - xhat * (tl.sum(dy * xhat, axis=0) / width)) * rstd
        tl.store(d_residual + row * width + columns, dx.to(d_residual.dtype.element_ty), mask=inside)
        if HAS_DROP:
            factor = tl.load(drop_scale + row // rows_per_sample).to(tl.float32)
            dx *= factor
        if HAS_SCALE:
            read = inside
            if HAS_DROP:
                read = tl.where(factor != 0.0, inside, False)
            update = tl.load(branch + row * branch_row + columns, mask=read, other=0.0).to(tl.float32)
            d_scale += dx * update
            dx *= scale
        if WRITE_BRANCH:
            tl.store(d_branch + row * width + columns, dx.to(d_branch.dtype.element_ty), mask=inside)
    partial = tl.program_id(0) * width + columns
    tl.store(d_weights + partial, d_weight, mask=inside)
    tl.store(d_biases + partial, d_bias, mask=inside)
    if HAS_SCALE:
        tl.store(d_scales + partial, d_scale, mask=inside)


def add_layer_norm_forward(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer_scale: Tensor | None,
    drop_scale: Tensor | None,
    eps: float,
    summed: Tensor,
    normed: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """Write the sum, its norm and the norm's statistics into the buffers.

    Rows are (R, D), parameters (D,) and factors of samples (B,).
    """
    residual, branch = with_adjacent_columns(residual), with_adjacent_columns(branch)
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
        num_rows // max(len(drop_scale), 1) if drop_scale is not None else 1,
        width,
        residual.stride(0),
        branch.stride(0),
        eps,
        HAS_SCALE=layer_scale is not None,
        HAS_DROP=drop_scale is not None,
        BLOCK=block_of(width),
        **chosen,
    )


def add_layer_norm_backward(
    d_summed: Tensor,
    d_normed: Tensor,
    summed: Tensor,
    branch: Tensor,
    weight: Tensor,
    layer_scale: Tensor | None,
    drop_scale: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    d_residual: Tensor,
    d_branch: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    d_scale: Tensor,
) -> None:
    """Write the gradients. The parameters' gradients are summed over programs in a fixed order."""
    d_summed = with_adjacent_columns(d_summed)
    d_normed = with_adjacent_columns(d_normed)
    branch = with_adjacent_columns(branch)
    num_rows, width = summed.shape
    chosen = settings("add_layer_norm_backward", width, summed.device)
    programs = persistent_programs(num_rows, chosen.pop("programs_per_multiprocessor"), summed.device)
    # A row for each program, summed afterwards in a fixed order. Atomic additions would give other bits in each run.
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
        num_rows // max(len(drop_scale), 1) if drop_scale is not None else 1,
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
