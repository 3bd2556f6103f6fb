"""SwiGLU and the layer norm behind it, over the true width of rows whose buffer may be wider."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def swiglu_subln_forward_kernel(
    gate,
    value,
    weight,
    bias,
    out,
    means,
    rstds,
    num_rows,
    width,
    padded_width,
    gate_row,
    value_row,
    eps,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Each program walks over rows, so that weight and bias are read once; what lies beyond the width becomes zero."""
    columns = tl.arange(0, BLOCK)
    # Rows are read and written over the padded width, which 16 divides: a mask at 2730 would end 16-byte accesses.
    inside, stored = columns < width, columns < padded_width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    for row in tl.range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0), num_stages=STAGES):
        g = tl.load(gate + row * gate_row + columns, mask=stored, other=0.0).to(tl.float32)
        v = tl.load(value + row * value_row + columns, mask=stored, other=0.0).to(tl.float32)
        hidden = tl.where(inside, g * tl.sigmoid(g) * v, 0.0)
        mean = tl.sum(hidden, axis=0) / width
        centred = tl.where(inside, hidden - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
        y = centred * rstd * w + b
        tl.store(out + row * padded_width + columns, y.to(out.dtype.element_ty), mask=stored)
        tl.store(means + row, mean)
        tl.store(rstds + row, rstd)


@triton.jit
def swiglu_subln_backward_kernel(
    d_out,
    gate,
    value,
    weight,
    means,
    rstds,
    d_gate,
    d_value,
    d_weights,
    d_biases,
    num_rows,
    width,
    padded_width,
    d_out_row,
    gate_row,
    value_row,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The hidden row is computed anew; a program's sums for weight and bias are one row of `d_weights`, `d_biases`."""
    columns = tl.arange(0, BLOCK)
    inside, stored = columns < width, columns < padded_width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK,), tl.float32)
    d_bias = tl.zeros((BLOCK,), tl.float32)
    for row in tl.range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0), num_stages=STAGES):
        dy = tl.load(d_out + row * d_out_row + columns, mask=stored, other=0.0).to(tl.float32)
        g = tl.load(gate + row * gate_row + columns, mask=stored, other=0.0).to(tl.float32)
        v = tl.load(value + row * value_row + columns, mask=stored, other=0.0).to(tl.float32)
        dy, g, v = tl.where(inside, dy, 0.0), tl.where(inside, g, 0.0), tl.where(inside, v, 0.0)
        mean, rstd = tl.load(means + row), tl.load(rstds + row)
        sigmoid = tl.sigmoid(g)
        silu = g * sigmoid
        normed = tl.where(inside, (silu * v - mean) * rstd, 0.0)
        d_weight += dy * normed
        d_bias += dy
        d_normed = dy * w
        along = tl.sum(d_normed * normed, axis=0) / width
        d_hidden = tl.where(inside, (d_normed - tl.sum(d_normed, axis=0) / width - normed * along) * rstd, 0.0)
        dg = d_hidden * v * (sigmoid + silu * (1.0 - sigmoid))
        dv = d_hidden * silu
        tl.store(d_gate + row * padded_width + columns, dg.to(d_gate.dtype.element_ty), mask=stored)
        tl.store(d_value + row * padded_width + columns, dv.to(d_value.dtype.element_ty), mask=stored)
    partial = tl.program_id(0) * padded_width + columns
    tl.store(d_weights + partial, d_weight, mask=stored)
    tl.store(d_biases + partial, d_bias, mask=stored)
