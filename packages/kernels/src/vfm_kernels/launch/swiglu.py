"""Launches SwiGLU with its norm, forward and backward."""

import torch
from torch import Tensor

from vfm_kernels.launch import block_of, launch, persistent_programs, settings, with_adjacent_columns
from vfm_kernels.swiglu import backward_buffers, forward_buffers
from vfm_kernels.triton.swiglu import swiglu_subln_backward_kernel, swiglu_subln_forward_kernel


def forward(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The op of the same name: rows (R, P), parameters (W,)."""
    gate, value = with_adjacent_columns(gate), with_adjacent_columns(value)
    out, mean, rstd = forward_buffers(gate, value, weight, bias, eps)
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
    return out, mean, rstd


def backward(
    d_out: Tensor, gate: Tensor, value: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Its gradients; those of weight and bias are summed over programs, in a fixed order."""
    d_out, gate, value = (with_adjacent_columns(tensor) for tensor in (d_out, gate, value))
    num_rows, padded_width = gate.shape
    d_gate, d_value, d_weight, d_bias = backward_buffers(d_out, gate, value, weight, mean, rstd)
    chosen = settings("swiglu_subln_backward", len(weight), gate.device)
    programs = persistent_programs(num_rows, chosen.pop("programs_per_multiprocessor"), gate.device)
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
    return d_gate, d_value, d_weight.copy_(sums[0]), d_bias.copy_(sums[1])
