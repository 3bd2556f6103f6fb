"""A residual sum with layer scale and drop path, and the layer norm that follows it."""
# mypy: ignore-errors

import triton
import triton.language as tl


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
    """Each program walks over rows, so that parameters are read once; a dropped sample's branch is not read at all."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_SCALE:
        scale = tl.load(layer_scale + columns, mask=inside, other=0.0).to(tl.float32)
    for row in tl.range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0), num_stages=STAGES):
        x = tl.load(residual + row * residual_row + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_DROP:
            kept = tl.load(drop_scale + row // rows_per_sample).to(tl.float32)
            read = tl.where(kept != 0.0, inside, False)
            update = tl.load(branch + row * branch_row + columns, mask=read, other=0.0).to(tl.float32) * kept
        else:
            update = tl.load(branch + row * branch_row + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_SCALE:
            update *= scale
        total = (x + update).to(summed.dtype.element_ty)
        tl.store(summed + row * width + columns, total, mask=inside)
        x = total.to(tl.float32)  # the norm of what is stored, which is what the backward reads
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
    """A program's sums for weight, bias and layer scale are one row each of `d_weights`, `d_biases`, `d_scales`."""
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
            kept = tl.load(drop_scale + row // rows_per_sample).to(tl.float32)
            dx *= kept
        if HAS_SCALE:
            read = inside
            if HAS_DROP:
                read = tl.where(kept != 0.0, inside, False)
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
