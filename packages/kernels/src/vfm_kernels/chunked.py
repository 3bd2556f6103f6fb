"""Losses over all pairs of two sets, in memory of a few rows of logits: loss and gradients in one pass.

A loss that is a sum over rows of logits needs only those rows to know its gradient with respect to them. So each chunk
of rows is made, turned into loss and gradient (on GPUs where it lies, by one kernel), and forgotten; what is kept for
the backward is as large as the inputs. This costs the same three matrix products as the plain loss with its backward,
and nothing is computed twice.
"""

# n queries, N keys, D width, c rows of a chunk

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vfm_kernels.dispatch import fused

# (logits (c, N), key that is right for the first row) -> summed loss, its gradient with respect to the logits (c, N).
# The right key of each further row is the next one. The logits may be overwritten.
RowLoss = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def chunked_pair_loss(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_loss: RowLoss,
    first_positive: int,
    chunk_size: int,
) -> Tensor:
    """Sum of `row_loss` over the rows of `scale * queries @ keys.T + bias`, never holding more than a chunk of them.

    Args:
        queries: (n, D).
        keys: (N, D).
        scale: scalar.
        bias: scalar.
        row_loss: `cross_entropy_rows`, `sigmoid_rows`, or what `soft_cross_entropy_rows` gives.
        first_positive: the key that belongs to query 0.
        chunk_size: rows held at once.

    Returns:
        Scalar, differentiable once in queries, keys, scale and bias.
    """
    inputs = (queries, keys, scale, bias, row_loss, first_positive, chunk_size)
    total: Tensor = _ChunkedPairLoss.apply(*inputs)  # type: ignore[no-untyped-call]
    return total


def cross_entropy_rows(logits: Tensor, first_positive: int) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of each row; the gradient is probabilities less one at the right key."""
    if fused(logits):
        return torch.ops.vfm_kernels.cross_entropy_rows_(logits, first_positive), logits
    labels = torch.arange(first_positive, first_positive + len(logits), device=logits.device)
    grad = logits.softmax(dim=1)
    grad.diagonal(first_positive).sub_(1.0)
    return F.cross_entropy(logits, labels, reduction="sum"), grad


def sigmoid_rows(logits: Tensor, first_positive: int) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of every pair; the gradient is the chance of a wrong answer, negative for right keys."""
    if fused(logits):
        return torch.ops.vfm_kernels.sigmoid_rows_(logits, first_positive), logits
    # The logits of the right keys change sign, rather than softplus(x) - x being taken: it would cancel for sure pairs.
    # logsigmoid, as torch's softplus becomes linear above 20, which costs 2e-9 per pair.
    logits.diagonal(first_positive).neg_()
    grad = logits.sigmoid()
    grad.diagonal(first_positive).neg_()
    return -F.logsigmoid(-logits).sum(), grad


def soft_cross_entropy_rows(wanted: Callable[[slice], Tensor]) -> RowLoss:
    """Cross-entropy of each row with a distribution over all keys; the gradient is what is too much of each.

    Args:
        wanted: the distributions of some rows, (c, N); `first_positive` 0 makes these rows the first ones.
    """

    def row_loss(logits: Tensor, first: int) -> tuple[Tensor, Tensor]:
        targets = wanted(slice(first, first + len(logits)))
        return F.cross_entropy(logits, targets, reduction="sum"), logits.softmax(dim=1) - targets

    return row_loss


class _ChunkedPairLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor,
        row_loss: RowLoss,
        first_positive: int,
        chunk_size: int,
    ) -> Tensor:
        total, d_scale, d_bias = torch.zeros_like(scale), torch.zeros_like(scale), torch.zeros_like(scale)
        d_queries, d_keys = torch.empty_like(queries), torch.zeros_like(keys)
        for start in range(0, len(queries), chunk_size):
            rows = slice(start, start + chunk_size)
            cosine = queries[rows] @ keys.T  # (c, N)
            loss, d_logits = row_loss(cosine * scale + bias, first_positive + start)
            total += loss
            d_bias += d_logits.sum()
            d_scale += (d_logits * cosine).sum()
            d_logits *= scale
            d_queries[rows] = d_logits @ keys
            d_keys.addmm_(d_logits.T, queries[rows])
        ctx.save_for_backward(d_queries, d_keys, d_scale, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_queries, d_keys, d_scale, d_bias = ctx.saved_tensors
        return grad * d_queries, grad * d_keys, grad * d_scale, grad * d_bias, None, None, None
