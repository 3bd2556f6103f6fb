"""Attention at the head widths of EVA, CLIP and SigLIP: short and stream forward, backward, with and without angles."""

import torch

from vfm_kernels.attention_op import forward_buffers
from vfm_kernels.pattern import Pattern
from vfm_kernels.triton import attention_backward, attention_forward, launch

CPU = torch.device("cpu")


def run(width: int, num_tokens: int, kernel: str, *, num_heads: int = 16, rope: bool = False, **kind: bool) -> None:
    if kernel == "short" and launch.architecture(CPU) != "sm90":
        return  # the backend supports Hopper only
    qkv = torch.empty(64, num_tokens, 3, num_heads, width, dtype=torch.bfloat16, device="meta")
    if kind.pop("varlen", False):
        qkv = qkv[:1]
        kind["cu_seqlens"] = torch.empty(9, dtype=torch.int32, device="meta")
    if rope:
        kind["sin"] = kind["cos"] = torch.empty(num_tokens - 1, width // 2, device="meta")
    pattern = Pattern.from_arguments(*qkv.unbind(2), num_prefix_tokens=int(rope), **kind)
    out, lse = forward_buffers(qkv[:, :, 0])
    if kernel != "backward":
        attention_forward(*qkv.unbind(2), out, lse, pattern, short=kernel == "short")
        return
    attention_backward(out, out, lse, *qkv.unbind(2), *torch.empty_like(qkv).unbind(2), pattern)


def cases(kernel: str, *widths: int, **kind: bool) -> dict:
    def of(width: int):
        return (f"attention_{kernel}", width, lambda: run(width, 257, kernel, **kind))

    name = " ".join([kernel, *(word for word, is_set in kind.items() if is_set)])
    return {f"{name} {width}": of(width) for width in widths}


CASES = {
    **cases("short", 64, 80, 88),
    **cases("short", 64, 88, rope=True),
    "short of 197": ("attention_short", 64, lambda: run(64, 197, "short")),
    "short of 129": ("attention_short", 64, lambda: run(64, 129, "short")),
    **cases("stream", 64, 72, 88, 112, 128),
    **cases("stream", 64, causal=True),
    **cases("stream", 64, varlen=True),
    **cases("backward", 64, 72, 88, 104, 128),
    **cases("backward", 64, causal=True, varlen=True),
    **cases("backward", 64, 88, rope=True),
}
