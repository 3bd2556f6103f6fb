"""Kernels of SwiGLU and the layer norm after it, for rows whose buffer may be wider than the true width."""

# R rows (tokens), W true width, P width of the buffer
# mypy: ignore-errors

import torch
import triton
import triton.language as tl
from torch import Tensor

from vfm_kernels.triton.launch import block_of, launch, persistent_programs, settings, with_adjacent_columns


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
    """Loop over rows in each program, so that weight and bias are read once. Columns beyond the width become zero."""
    columns = tl.arange(0, BLOCK)
    # Rows are read and written over the padded width, a multiple of 16: a mask at 2730 would prevent 16-byte accesses.
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
    """Recompute the hidden layer, and store a program's sums for weight and bias as one row of `d_weights`, `d_biases`.

    Keeping the hidden layer would cost R x P values of memory and one more read. Recomputing it costs a sigmoid.
    """
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


def swiglu_forward(
    gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor, mean: Tensor, rstd: Tensor
) -> None:
    """Write the result (R, P) and the norm's statistics (R,). Weight and bias are (W,)."""
    gate, value = with_adjacent_columns(gate), with_adjacent_columns(value)
    num_rows, padded_width = gate.shape
    chosen = settings("swiglu_subln_forward", len(weight), gate.device)
    grid = (persistent_programs(num_rows, chosen.pop("programs_per_multiprocessor"), gate.device),)
    launch(
        swiglu_subln_forward_kernel,
        grid,
        gate.device,
        gate,
        value,
        weight.contiguous(),
        bias.contiguous(),
        out,
        mean,
        rstd,
        num_rows,
        len(weight),
        padded_width,
        gate.stride(0),
        value.stride(0),
        eps,
        BLOCK=block_of(padded_width),
        **chosen,
    )


def swiglu_backward(
    d_out: Tensor,
    gate: Tensor,
    value: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    d_gate: Tensor,
    d_value: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
) -> None:
    """Write the gradients. The parameters' gradients are summed over programs in a fixed order."""
    d_out = with_adjacent_columns(d_out)
    gate = with_adjacent_columns(gate)
    value = with_adjacent_columns(value)
    num_rows, padded_width = gate.shape
    chosen = settings("swiglu_subln_backward", len(weight), gate.device)
    programs = persistent_programs(num_rows, chosen.pop("programs_per_multiprocessor"), gate.device)
    # Each program adds its rows to one row of partial sums. They are summed in a fixed order below.
    partials = torch.empty(2, programs, padded_width, device=gate.device)
    launch(
        swiglu_subln_backward_kernel,
        (programs,),
        gate.device,
        d_out,
        gate,
        value,
        weight.contiguous(),
        mean,
        rstd,
        d_gate,
        d_value,
        *partials,
        num_rows,
        len(weight),
        padded_width,
        d_out.stride(0),
        gate.stride(0),
        value.stride(0),
        BLOCK=block_of(padded_width),
        **chosen,
    )
    sums = partials.sum(dim=1)[:, : len(weight)]
    d_weight.copy_(sums[0])
    d_bias.copy_(sums[1])
