"""Residual sum and norm at the widths of EVA-02-L, EVA-g and bigG, with an fp32 stream and a bf16 branch."""

import torch

from vfm_kernels.layers.add_layer_norm import backward_buffers, forward_buffers
from vfm_kernels.triton import add_layer_norm_backward, add_layer_norm_forward


def run(width: int, stream: torch.dtype, *, scaled: bool) -> None:
    residual = torch.empty(65792, width, dtype=stream, device="meta")
    branch = torch.empty(65792, width, dtype=torch.bfloat16, device="meta")
    weight, bias = torch.empty(width, device="meta"), torch.empty(width, device="meta")
    scales = (torch.empty(width, device="meta"), torch.empty(256, device="meta")) if scaled else (None, None)
    inputs = (residual, branch, weight, bias, *scales, 1e-6)
    summed, normed, mean, rstd = buffers = forward_buffers(*inputs)
    add_layer_norm_forward(*inputs, *buffers)  # type: ignore[call-arg]
    inputs = (summed, normed, summed, branch, weight, *scales, mean, rstd)
    add_layer_norm_backward(*inputs, *backward_buffers(*inputs))  # type: ignore[call-arg]


CASES = {
    "EVA-02-L": ("add_layer_norm_backward", 1024, lambda: run(1024, torch.bfloat16, scaled=False)),
    "EVA-g with layer scale": ("add_layer_norm_backward", 1408, lambda: run(1408, torch.float32, scaled=True)),
    "bigG": ("add_layer_norm_backward", 1664, lambda: run(1664, torch.float32, scaled=False)),
    "EVA-CLIP-8B": ("add_layer_norm_backward", 4096, lambda: run(4096, torch.bfloat16, scaled=True)),
}
