"""Losses over all pairs of two sets, in one pass with their gradients and with only a few rows of logits in memory.

The gradient of a sum over rows of logits with respect to some rows depends only on those rows. So each chunk of rows is
computed, turned into loss and gradient (on GPUs in place, by one kernel) and discarded. The tensors saved for the
backward are as large as the inputs. This costs the same three matrix products as the plain loss with its backward.
"""

# n queries, N keys, D width, c rows of a chunk

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vfm_kernels.dispatch.dispatch import fused, launchers, runs_triton
from vfm_kernels.dispatch.library import Op

# Maps (logits (c, N), index of the first row's positive key) to the summed loss and its gradient with respect to the
# logits (c, N). The positive key of each further row is the next one. The logits may be overwritten.
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
    """Sum `row_loss` over the rows of `scale * queries @ keys.T + bias`, with one chunk of rows in memory at a time.

    Args:
        queries: (n, D).
        keys: (N, D).
        scale: Scalar.
        bias: Scalar.
        row_loss: `cross_entropy_rows`, `sigmoid_rows`, or a result of `distinct_cross_entropy_rows` or
            `soft_cross_entropy_rows`.
        first_positive: Index of the key that belongs to query 0.
        chunk_size: Rows in memory at once.

    Returns:
        Scalar, differentiable once in queries, keys, scale and bias.
    """
    inputs = (queries, keys, scale, bias, row_loss, first_positive, chunk_size)
    total: Tensor = _ChunkedPairLoss.apply(*inputs)  # type: ignore[no-untyped-call]
    return total


def cross_entropy_rows(logits: Tensor, first_positive: int) -> tuple[Tensor, Tensor]:
    """Compute the softmax cross-entropy of rows. Its gradient is the probabilities, less 1 at the positive key."""
    if fused("info_nce", logits):
        return _ROW_OPS["cross_entropy_rows"](logits, first_positive), logits
    labels = torch.arange(first_positive, first_positive + len(logits), device=logits.device)
    grad = logits.softmax(dim=1)
    grad.diagonal(first_positive).sub_(1.0)
    return F.cross_entropy(logits, labels, reduction="sum"), grad


def distinct_cross_entropy_rows(all_groups: Tensor) -> RowLoss:
    """Build a variant of `cross_entropy_rows` that ignores the other keys of a row's group.

    Args:
        all_groups: Group of each key, (N,). A row has the group of its positive key.
    """

    def row_loss(logits: Tensor, first_positive: int) -> tuple[Tensor, Tensor]:
        # Minus infinity gives a key no probability, and so no gradient.
        ignored = same_group(all_groups, first_positive, len(logits))
        return cross_entropy_rows(logits.masked_fill_(ignored, -torch.inf), first_positive)

    return row_loss


def same_group(all_groups: Tensor, first: int, num_rows: int) -> Tensor:
    """Find the other keys in each row's group.

    Args:
        all_groups: Group of each key, (N,).
        first: Key that is the positive of row 0. The positive of row i is `first` + i.
        num_rows: Number of rows n.

    Returns:
        Mask (n, N), True for keys of the row's group except its positive.
    """
    same = all_groups[first : first + num_rows, None] == all_groups
    same.diagonal(first).fill_(False)
    return same


def sigmoid_rows(logits: Tensor, first_positive: int) -> tuple[Tensor, Tensor]:
    """Compute the binary cross-entropy of every pair. Its gradient is the signed probability of a wrong answer."""
    if fused("siglip_loss", logits):
        return _ROW_OPS["sigmoid_rows"](logits, first_positive), logits
    # The logits of positive keys change sign; softplus(x) - x would cancel for confident pairs. logsigmoid, because
    # torch's softplus becomes linear above 20, an error of 2e-9 per pair.
    logits.diagonal(first_positive).neg_()
    grad = logits.sigmoid()
    grad.diagonal(first_positive).neg_()
    return -F.logsigmoid(-logits).sum(), grad


def soft_cross_entropy_rows(distributions: Callable[[slice], Tensor]) -> RowLoss:
    """Build the cross-entropy of each row with a target distribution over all keys. Its gradient is the difference.

    Args:
        distributions: Maps a slice of rows to their target distributions (c, N). Use `first_positive` 0.
    """

    def row_loss(logits: Tensor, first: int) -> tuple[Tensor, Tensor]:
        targets = distributions(slice(first, first + len(logits)))
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
        total = torch.zeros_like(scale)
        d_scale = torch.zeros_like(scale)
        d_bias = torch.zeros_like(scale)
        # The gradients are computed in the forward pass, where the logits exist. Autograd would keep the logits of all
        # chunks.
        d_queries = torch.empty_like(queries)
        d_keys = torch.zeros_like(keys)
        for start in range(0, len(queries), chunk_size):
            rows = slice(start, start + chunk_size)
            cosine = queries[rows] @ keys.T  # (c, N)
            loss, d_logits = row_loss((cosine * scale).add_(bias), first_positive + start)
            total += loss
            d_bias += d_logits.sum()
            d_scale += cosine.mul_(d_logits).sum()
            d_logits *= scale
            d_queries[rows] = d_logits @ keys
            d_keys.addmm_(d_logits.T, queries[rows])
            del cosine, d_logits  # or two chunks would be in memory while the next is computed
        ctx.save_for_backward(d_queries, d_keys, d_scale, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_queries, d_keys, d_scale, d_bias = ctx.saved_tensors
        return grad * d_queries, grad * d_keys, grad * d_scale, grad * d_bias, None, None, None


def _run_rows(logits: Tensor, first_positive: int, name: str) -> Tensor:
    """Replace logits by their gradients in place and sum the losses, by the kernel or the plain form `name`."""
    if runs_triton(logits):
        losses: Tensor = getattr(launchers(), name)(logits, first_positive)
        return losses.sum()
    plain: dict[str, RowLoss] = {"cross_entropy_rows": cross_entropy_rows, "sigmoid_rows": sigmoid_rows}
    loss, grad = plain[name](logits, first_positive)
    logits.copy_(grad)
    return loss


_ROW_OPS = {
    name: Op(
        f"{name}_(Tensor(a!) logits, SymInt first_positive) -> Tensor",
        partial(_run_rows, name=name),
        lambda logits, first_positive: logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32)),
    )
    for name in ("cross_entropy_rows", "sigmoid_rows")
}
