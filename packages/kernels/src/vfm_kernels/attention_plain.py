"""Attention in plain torch and in closed form: the specification, and the op where no kernel runs."""

# B batch, N tokens, H heads, D width of a head

import math

import torch
from torch import Tensor

from vfm_kernels.pattern import Pattern
from vfm_kernels.precision import at_least_fp32


def attention_plain(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The plain twin of `attention`, with the base-2 logarithms of the softmax's sums.

    Args:
        q: (B, N, H, D).
        k: like `q`.
        v: like `q`.
        pattern: who sees whom.

    Returns:
        out: (B, N, H, D).
        lse: (B, H, N), fp32 (fp64 for fp64): what the backward needs of the softmax.
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = _scores(pattern.turned(q), pattern.turned(k), pattern)
        weights = scores.softmax(dim=-1).to(v.dtype)
        out = torch.einsum("bhnm,bmhd->bnhd", weights, v)
    return out, at_least_fp32(scores).logsumexp(dim=-1) / math.log(2)


def attention_plain_backward(
    d_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, by what the forward kept: (B, N, H, D) each."""
    dtype = q.dtype
    q, k = pattern.turned(q), pattern.turned(k)
    weights = torch.exp2(at_least_fp32(_scores(q, k, pattern)) / math.log(2) - lse[..., None])
    d_out, out, q, k, v = (at_least_fp32(tensor) for tensor in (d_out, out, q, k, v))
    d_weights = torch.einsum("bnhd,bmhd->bhnm", d_out, v)
    delta = (d_out * out).sum(dim=-1).transpose(1, 2)[..., None]
    d_scores = weights * (d_weights - delta) * pattern.scale
    d_q = pattern.turned(torch.einsum("bhnm,bmhd->bnhd", d_scores, k), inverse=True)
    d_k = pattern.turned(torch.einsum("bhnm,bnhd->bmhd", d_scores, q), inverse=True)
    d_v = torch.einsum("bhnm,bnhd->bmhd", weights, d_out)
    return d_q.to(dtype), d_k.to(dtype), d_v.to(dtype)


def seen(q: Tensor, pattern: Pattern) -> Tensor | None:
    """(N, N), True where a query (row) sees a key (column); None if all see all."""
    if pattern.cu_seqlens is None and not pattern.causal:
        return None
    tokens = torch.arange(q.shape[1], device=q.device)
    allowed = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=q.device)
    if pattern.cu_seqlens is not None:
        sequence = torch.searchsorted(pattern.cu_seqlens.to(tokens.dtype), tokens, right=True)
        allowed = sequence[:, None] == sequence[None, :]
    return allowed & (tokens[None, :] <= tokens[:, None]) if pattern.causal else allowed


def _scores(q: Tensor, k: Tensor, pattern: Pattern) -> Tensor:
    scores = torch.einsum("bnhd,bmhd->bhnm", q * pattern.scale, k)
    allowed = seen(q, pattern)
    return scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
