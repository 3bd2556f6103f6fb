"""SwiGLU with its norm at EVA-02's widths: S 1024, B 2048, and L padded from 2730 to 2752."""

import torch

from vfm_kernels.layers.swiglu import backward_buffers, forward_buffers
from vfm_kernels.triton import swiglu_backward, swiglu_forward


def run(width: int, padded: int) -> None:
    gate, value, d_out = (torch.empty(65792, padded, dtype=torch.bfloat16, device="meta") for _ in range(3))
    weight, bias = torch.empty(width, device="meta"), torch.empty(width, device="meta")
    out, mean, rstd = forward_buffers(gate, value, weight, bias, 1e-6)
    swiglu_forward(gate, value, weight, bias, 1e-6, out, mean, rstd)
    inputs = (d_out, gate, value, weight, mean, rstd)
    swiglu_backward(*inputs, *backward_buffers(*inputs))


CASES = {
    "EVA-02-S": ("swiglu_subln_backward", 1024, lambda: run(1024, 1024)),
    "EVA-02-B": ("swiglu_subln_backward", 2048, lambda: run(2048, 2048)),
    "EVA-02-L": ("swiglu_subln_backward", 2730, lambda: run(2730, 2752)),
}
