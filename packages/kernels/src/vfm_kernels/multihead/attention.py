"""Attention in one pass over the heads, by the fastest implementation that can take it."""

# B batch, N tokens, H heads, D width of a head, S sequences in one long row

from typing import Any

import torch
from torch import Tensor

from vfm_kernels.multihead import backends
from vfm_kernels.multihead.attention_op import attention_packed_op
from vfm_kernels.pattern import Pattern


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    sin: Tensor | None = None,
    cos: Tensor | None = None,
    num_prefix_tokens: int = 0,
    positions: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    visible: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute `softmax(q k^T scale) v` for each head. Rotary positions may rotate queries and keys first.

    Any strides are accepted if the channels of a head are adjacent. Pass heads that torch lays out as (B, H, N, D) as
    `q.transpose(1, 2)`. On a CPU this is torch's own `scaled_dot_product_attention`.

    Args:
        q: (B, N, H, D), floating point.
        k: Like `q`.
        v: Like `q`.
        causal: A token sees only itself and earlier tokens.
        scale: Factor of the scores. Default: 1 / sqrt(D).
        sin: (P, D / 2) or, with angles for each sample, (B, P, D / 2). Channel pairs (0, 1), (2, 3), ... are rotated as
            in timm's `Eva`. Not differentiated.
        cos: Like `sin`.
        num_prefix_tokens: Leading tokens without a position (CLS, registers). Token n has row n - num_prefix_tokens.
        positions: (B, N) integers below P: each token's row of the table, for dropped patches. Negative: no position.
        cu_seqlens: (S + 1,) int32, from 0 to N: boundaries of sequences that are concatenated in a batch of 1 and do
            not see each other. A sequence may be empty.
        max_seqlen: Length of the longest sequence, which avoids waiting for the GPU to read it from `cu_seqlens`.
            Default: N. A smaller one, like a position beyond the table, is an error on a CPU. A GPU stops by an
            assertion on the device, as for an index of torch, and the host waits for neither.
        visible: Booleans that are broadcast to (B, H, N, N), True where a query (row) sees a key (column). Every query
            must see a key. Not allowed with `causal` or `cu_seqlens`.
        backend: Name of the backend to use, as `explain` lists them. Default: the first that can run and is expected
            to be fastest.

    Returns:
        (B, N, H, D), in the dtype of `q`.

    Raises:
        ValueError: If shapes are inconsistent, lengths or positions are (on a CPU), or a forced backend (or
            `use_kernels("triton")`) cannot run.

    Source: Dao et al. 2022, FlashAttention (arXiv:2205.14135). Dao 2023, FlashAttention-2 (arXiv:2307.08691).
    """
    pattern = Pattern.from_arguments(
        q, k, v, causal, scale, sin, cos, num_prefix_tokens, positions, cu_seqlens, max_seqlen
    )
    if visible is not None:
        _check_visible(visible, q, pattern)
    name = backends.choose(q, q.shape, pattern, backend, masked=visible is not None)
    return backends.attend(q, k, v, pattern, name, visible)


def _check_visible(visible: Tensor, q: Tensor, pattern: Pattern) -> None:
    batch, num_tokens, num_heads, _ = q.shape
    full = (batch, num_heads, num_tokens, num_tokens)
    fits = visible.ndim == 4 and all(actual in (1, size) for actual, size in zip(visible.shape, full, strict=True))
    if visible.dtype != torch.bool or not fits:
        raise ValueError(
            f"expected visible as booleans that are broadcast to {full}, got {visible.dtype} {tuple(visible.shape)}"
        )
    if pattern.causal or pattern.cu_seqlens is not None:
        raise ValueError("visible excludes causal and cu_seqlens: put their masks into it")


def attention_packed(
    qkv: Tensor, *, visible: Tensor | None = None, backend: str | None = None, **pattern: Any
) -> Tensor:
    """Compute `attention` of queries, keys and values in a single tensor. Their gradient is a single tensor, too.

    With three separate inputs, autograd would copy their gradients into a common tensor.

    Args:
        qkv: (B, N, 3, H, D).
        visible: As for `attention`.
        backend: As for `attention`.
        **pattern: The other keywords of `attention`.

    Returns:
        (B, N, H, D).

    Raises:
        ValueError: See `attention`.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"expected qkv of shape (B, N, 3, H, D), got {tuple(qkv.shape)}")
    if visible is not None:
        return attention(*qkv.unbind(2), visible=visible, backend=backend, **pattern)
    shape = (*qkv.shape[:2], *qkv.shape[3:])
    checked = Pattern.of_shape(shape, **pattern)
    name = backends.choose(qkv, shape, checked, backend)
    if not name.startswith("triton"):
        q, k, v = qkv.unbind(2)
        return backends.attend(q, k, v, checked, name)
    mixed: Tensor = attention_packed_op(qkv, *checked, name == "triton_short")[0]
    return mixed
