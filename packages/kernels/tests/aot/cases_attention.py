"""Attention at the head widths of EVA, CLIP and SigLIP: short and stream forward, backward, with and without angles."""

from typing import Any

import torch

from vfm_kernels.multihead.attention_op import forward_buffers
from vfm_kernels.pattern import Pattern
from vfm_kernels.triton import attention_backward, attention_forward, launch

CPU = torch.device("cpu")


def run(
    width: int,
    num_tokens: int,
    kernel: str,
    *,
    num_heads: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    odd: bool = False,
    rope: bool = False,
    positions: bool = False,
    **kind: Any,
) -> None:
    if kernel == "short" and launch.architecture(CPU) != "sm90":
        return  # the backend supports Hopper only
    # Odd: heads that lie in wider rows, whose strides nothing divides.
    qkv = torch.empty(64, num_tokens, 3, num_heads, width + 3 * odd, dtype=dtype, device="meta")[..., :width]
    if kind.pop("varlen", False):
        qkv = qkv[:1]
        kind["cu_seqlens"] = torch.empty(9, dtype=torch.int32, device="meta")
    if rope:
        kind["sin"] = kind["cos"] = torch.empty(num_tokens - 1, width // 2, device="meta")
    if positions:
        kind["positions"] = torch.empty(64, num_tokens, dtype=torch.int64, device="meta")
    pattern = Pattern.from_arguments(*qkv.unbind(2), num_prefix_tokens=int(rope), **kind)
    out, lse = forward_buffers(qkv[:, :, 0])
    if kernel != "backward":
        attention_forward(*qkv.unbind(2), out, lse, pattern, short=kernel == "short")  # type: ignore[call-arg]
        return
    gradients = torch.empty(qkv.shape, dtype=dtype, device="meta")
    attention_backward(out, out, lse, *qkv.unbind(2), *gradients.unbind(2), pattern)  # type: ignore[call-arg]


def cases(kernel: str, *widths: int, name: str = "", **kind: Any) -> dict:
    def of(width: int):
        return (f"attention_{kernel}", width, lambda: run(width, 257, kernel, **kind))

    words = name or " ".join(word for word, is_set in kind.items() if is_set)
    return {f"{kernel} {words} {width}".replace("  ", " "): of(width) for width in widths}


CASES = {
    **cases("short", 64, 80, 88),
    **cases("short", 64, 88, rope=True),
    **cases("short", 64, rope=True, positions=True),
    **cases("short", 64, name="fp16", dtype=torch.float16),
    "short of 197": ("attention_short", 64, lambda: run(64, 197, "short")),
    "short of 129": ("attention_short", 64, lambda: run(64, 129, "short")),
    **cases("stream", 64, 72, 88, 112, 128),
    **cases("stream", 64, causal=True),
    **cases("stream", 64, varlen=True),
    **cases("stream", 88, name="fp16", dtype=torch.float16),
    **cases("stream", 64, name="odd strides", odd=True),
    **cases("backward", 64, 72, 88, 104, 128),
    **cases("backward", 64, causal=True),
    **cases("backward", 64, causal=True, varlen=True),
    **cases("backward", 64, 88, rope=True),
    **cases("backward", 64, rope=True, positions=True),
    **cases("backward", 88, name="fp16", dtype=torch.float16),
    **cases("backward", 64, name="odd strides", odd=True),
}
