"""Attention in plain torch and in closed form. It is the specification, and the op where no kernel runs."""

# B batch, N tokens, H heads, D width of a head

import math

import torch
from torch import Tensor

from vfm_kernels.dispatch.precision import at_least_fp32
from vfm_kernels.multihead.rope import rotate_plain
from vfm_kernels.pattern import Pattern


def attention_plain(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, visible: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute attention and the base-2 logarithms of the softmax's sums.

    Args:
        q: (B, N, H, D).
        k: Like `q`.
        v: Like `q`.
        pattern: Mask, scale and angles.
        visible: True where a query (row) sees a key (column), broadcast to (B, H, N, N). None: see `pattern`.

    Returns:
        out: (B, N, H, D).
        lse: (B, H, N), fp32 (fp64 for fp64): base-2 logarithms of the softmax's sums, for the backward.
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = _scores(_rotated(q, pattern), _rotated(k, pattern), pattern)
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        weights = scores.softmax(dim=-1).to(v.dtype)
        out = torch.einsum("bhnm,bmhd->bnhd", weights, v)
    return out, at_least_fp32(scores).logsumexp(dim=-1) / math.log(2)


def attention_plain_backward(
    d_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of queries, keys and values from the saved results of the forward.

    Args:
        d_out: Gradient of the output, (B, N, H, D).
        out: Output of the forward, (B, N, H, D).
        lse: base-2 logarithms of the softmax's sums, (B, H, N).
        q: Queries, (B, N, H, D).
        k: Keys, (B, N, H, D).
        v: Values, (B, N, H, D).
        pattern: Mask, scale and angles.

    Returns:
        The three gradients, (B, N, H, D) each.
    """
    dtype = q.dtype
    q, k = _rotated(q, pattern), _rotated(k, pattern)
    weights = torch.exp2(at_least_fp32(_scores(q, k, pattern)) / math.log(2) - lse[..., None])  # (B, H, N, N)
    d_out = at_least_fp32(d_out)
    out = at_least_fp32(out)
    q = at_least_fp32(q)
    k = at_least_fp32(k)
    v = at_least_fp32(v)
    d_weights = torch.einsum("bnhd,bmhd->bhnm", d_out, v)
    # The sum over keys of weight times its gradient, which the softmax subtracts, equals output times its gradient.
    delta = (d_out * out).sum(dim=-1).transpose(1, 2)[..., None]  # (B, H, N, 1)
    d_scores = weights * (d_weights - delta) * pattern.scale
    d_q = _rotated(torch.einsum("bhnm,bmhd->bnhd", d_scores, k), pattern, inverse=True)
    d_k = _rotated(torch.einsum("bhnm,bnhd->bmhd", d_scores, q), pattern, inverse=True)
    d_v = torch.einsum("bhnm,bnhd->bmhd", weights, d_out)
    return d_q.to(dtype), d_k.to(dtype), d_v.to(dtype)


def visible_keys(q: Tensor, pattern: Pattern) -> Tensor | None:
    """Build the mask of the keys that each query sees.

    Returns:
        (N, N), True where a query (row) sees a key (column). None without a mask.
    """
    if pattern.cu_seqlens is None and not pattern.causal:
        return None
    tokens = torch.arange(q.shape[1], device=q.device)
    visible = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=q.device)
    if pattern.cu_seqlens is not None:
        # The number of the sequence that each token belongs to.
        sequence = torch.searchsorted(pattern.cu_seqlens.to(tokens.dtype), tokens, right=True)
        visible = sequence[:, None] == sequence[None, :]
    if pattern.causal:
        visible = visible & (tokens[None, :] <= tokens[:, None])
    return visible


def _scores(q: Tensor, k: Tensor, pattern: Pattern) -> Tensor:
    scores = torch.einsum("bnhd,bmhd->bhnm", q * pattern.scale, k)
    visible = visible_keys(q, pattern)
    if visible is None:
        return scores
    return scores.masked_fill(~visible, float("-inf"))


def _rotated(heads: Tensor, pattern: Pattern, inverse: bool = False) -> Tensor:
    """Rotate queries or keys (B, N, H, D) by the pattern's angles, if it has any."""
    if pattern.sin is None or pattern.cos is None:
        return heads
    return rotate_plain(heads, pattern.sin, pattern.cos, pattern.num_prefix_tokens, pattern.positions, inverse)
