"""Calls of the attention backends. Each maps q, k, v (B, N, H, D) and a pattern to (B, N, H, D)."""

import importlib
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vfm_kernels.multihead.attention_op import attention_op
from vfm_kernels.multihead.attention_plain import attention_plain, visible_keys
from vfm_kernels.multihead.rope import rotate
from vfm_kernels.pattern import Pattern, can_be_read


@cache
def import_reasons(module: str) -> tuple[str, ...]:
    """Explain why a library cannot be used (it is not installed, or its import fails); empty if it can.

    The import is tried once in a process. Finding the module's file is not enough: a flash_attn without its
    dependencies has one too.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is not None and module.startswith(missing.name):
            return (f"{missing.name} is not installed",)
        return (f"{module} needs {missing.name}, which is not installed",)
    except Exception as error:  # a library built for another torch or CUDA fails in its own way
        first_line = str(error).strip().partition(chr(10))[0]
        return (f"the import of {module} fails: {type(error).__name__}: {first_line}",)
    return ()


def cudnn_version() -> int | None:
    """Return the version of torch's cuDNN, 91501 for 9.15.1.

    A torch without cuDNN gives None.
    """
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def run_triton_short(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Run our kernel for few tokens."""
    mixed: Tensor = attention_op(q, k, v, *pattern, True)[0]
    return mixed


def run_triton_stream(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Run our kernel for any number of tokens."""
    mixed: Tensor = attention_op(q, k, v, *pattern, False)[0]
    return mixed


def run_fa4(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Run FlashAttention 4."""
    from flash_attn import cute  # type: ignore[import-not-found]

    return _flash_attention(cute, q, k, v, pattern)


def run_fa3(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Run FlashAttention 3."""
    import flash_attn_interface  # type: ignore[import-not-found]

    # By default it may split the keys of a head among programs, which was several times slower at 1000 tokens.
    return _flash_attention(flash_attn_interface, q, k, v, pattern, num_splits=1)


def run_sdpa(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, visible: Tensor | None = None) -> Tensor:
    """Run torch's `scaled_dot_product_attention` with the kernel that torch chooses."""
    q, k = _rotated(q, pattern), _rotated(k, pattern)
    if pattern.cu_seqlens is not None and can_be_read(pattern.cu_seqlens):
        return _each_sequence(q, k, v, pattern, pattern.cu_seqlens)
    mask = visible if pattern.cu_seqlens is None else visible_keys(q, pattern)
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    causal = pattern.causal and mask is None
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=pattern.scale)
    return mixed.transpose(1, 2)


def _each_sequence(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, cu_seqlens: Tensor) -> Tensor:
    """Run torch's attention for each sequence of a row, where a mask would compute the scores between all of them."""
    lengths = cu_seqlens.diff().tolist()
    rows = [torch.split(heads.transpose(1, 2), lengths, dim=2) for heads in (q, k, v)]
    parts = []
    for q_part, k_part, v_part in zip(*rows, strict=True):
        mixed = F.scaled_dot_product_attention(q_part, k_part, v_part, is_causal=pattern.causal, scale=pattern.scale)
        parts.append(mixed)
    return torch.cat(parts, dim=2).transpose(1, 2)


def run_sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Run torch's `scaled_dot_product_attention` with cuDNN."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return run_sdpa(q, k, v, pattern)


def run_sdpa_flash(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Run torch's `scaled_dot_product_attention` with its FlashAttention 2."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return run_sdpa(q, k, v, pattern)


def run_sdpa_efficient(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, visible: Tensor | None = None) -> Tensor:
    """Run torch's `scaled_dot_product_attention` with its memory-efficient kernel."""
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return run_sdpa(q, k, v, pattern, visible)


def run_xformers(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Run xformers' memory-efficient attention."""
    from xformers import ops

    bias = ops.LowerTriangularMask() if pattern.causal else None
    q, k = _rotated(q, pattern), _rotated(k, pattern)
    mixed: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=bias, scale=pattern.scale)
    return mixed


def run_eager(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, visible: Tensor | None = None) -> Tensor:
    """Run the plain form."""
    return attention_plain(q, k, v, pattern, visible)[0]


def _flash_attention(module: Any, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **options: Any) -> Tensor:
    q, k = _rotated(q, pattern), _rotated(k, pattern)
    options |= {"softmax_scale": pattern.scale, "causal": pattern.causal}
    if pattern.cu_seqlens is None:
        mixed = module.flash_attn_func(q, k, v, **options)
    else:
        mixed = module.flash_attn_varlen_func(
            q.squeeze(0),
            k.squeeze(0),
            v.squeeze(0),
            cu_seqlens_q=pattern.cu_seqlens,
            cu_seqlens_k=pattern.cu_seqlens,
            max_seqlen_q=pattern.max_seqlen,
            max_seqlen_k=pattern.max_seqlen,
            **options,
        )
    # Some versions return the log-sum-exp too.
    first: Tensor = mixed[0] if isinstance(mixed, tuple) else mixed
    return first.view(q.shape)


def _rotated(heads: Tensor, pattern: Pattern) -> Tensor:
    """Rotate queries or keys by the pattern's angles, if it has any."""
    if pattern.sin is None or pattern.cos is None:
        return heads
    return rotate(heads, pattern.sin, pattern.cos, pattern.num_prefix_tokens, pattern.positions)
