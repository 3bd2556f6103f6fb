"""CLIP's loss of all pairs in both directions from one product, with no matrix of all logits in memory.

The chunks of `chunked` multiply every pair twice in each pass, once for each direction. Here one product yields the
statistics of rows and columns, tile by tile. The backward pass multiplies again by chunks of rows, whose gradients join
both directions: 8 N^2 D operations instead of 12.

With several processes, each has the rows of its own images, (n, N), in both directions. Only texts are gathered. The
statistics of columns, 8 bytes for each text, are joined over the processes, and the gradients of texts are added and
scattered. Chunks gather images too, and multiply each pair twice.

Source: Cheng et al. 2024, Breaking the Memory Barrier (arXiv:2410.17243), for tiles of the contrastive loss.
"""

# n samples of this process, N of all processes, D width, c rows of a chunk

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from vfm_kernels.dispatch.dispatch import launchers, runs_triton
from vfm_kernels.dispatch.library import Op
from vfm_kernels.losses.gather import gathered, scattered_sum

# Largest and sum of exponentials of rows (n,) and of columns (N,), and the logits of positive pairs (n,).
Statistics = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def all_pairs_loss(
    image: Tensor, text: Tensor, scale: Tensor, chunk_size: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Compute CLIP's symmetric loss, the mean over this process's samples.

    Args:
        image: (n, D), fp32, normalised.
        text: (n, D), fp32, normalised.
        scale: Factor of the cosines, a scalar.
        chunk_size: Rows of logits in memory at once, in the backward pass.
        group: Processes that share the batch. All of them must backpropagate the loss with the same factor, since the
            gradients of a process include its samples' share in the losses of the others.

    Returns:
        Scalar, differentiable once in all three.
    """
    loss: Tensor = _AllPairsLoss.apply(image.contiguous(), text.contiguous(), scale, chunk_size, group)  # type: ignore[no-untyped-call]
    return loss


class _AllPairsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, chunk_size: int, group: dist.ProcessGroup | None
    ) -> Tensor:
        num = len(text)
        offset = 0
        if group:
            text = gathered(text, group)
            offset = dist.get_rank(group) * num
        row_largest, row_total, *of_keys, positive = _STATISTICS(image, text, scale, offset, chunk_size)
        key_largest, key_total = _joined_over(group, *of_keys) if group else of_keys
        ctx.save_for_backward(image, text, scale, row_largest, row_total, key_largest, key_total)
        ctx.chunk_size = chunk_size
        ctx.group = group
        ctx.offset = offset
        local = slice(offset, offset + num)
        # The largest minus the positive logit is exact where they are equal.
        of_images = (row_largest - positive) + row_total.log()
        of_texts = (key_largest[local] - positive) + key_total[local].log()
        loss: Tensor = (of_images + of_texts).mean() / 2
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, *statistics = ctx.saved_tensors
        d_image = torch.empty_like(image)
        d_text = torch.zeros_like(text)
        d_scale = torch.zeros_like(scale)
        for first in range(0, len(image), ctx.chunk_size):
            num_rows = min(ctx.chunk_size, len(image) - first)
            gradients, products = _GRADIENTS(image, text, scale, *statistics, ctx.offset, first, num_rows)
            rows = slice(first, first + num_rows)
            d_scale += products
            d_image[rows] = gradients @ text
            d_text.addmm_(gradients.T, image[rows])
            del gradients  # or two chunks would be in memory while the next is computed
        if ctx.group:
            d_text = scattered_sum(d_text, len(image), ctx.group)
        factor = grad / (2 * len(image))
        # The products are of logits, which are the cosines times the scale.
        return d_image.mul_(factor * scale), d_text.mul_(factor * scale), d_scale * factor / scale, None, None


def _joined_over(group: dist.ProcessGroup, largest: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Join the statistics of columns over processes, each of which has some of the rows."""
    most = largest.clone()
    dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
    total = total * (largest - most).exp()
    dist.all_reduce(total, group=group)
    return most, total


def _statistics(image: Tensor, text: Tensor, scale: Tensor, offset: int, chunk_size: int) -> Statistics:
    if runs_triton(image):
        by_kernel: Statistics = launchers().pair_statistics(image, text, scale, offset)
        return by_kernel
    row_parts: list[tuple[Tensor, Tensor]] = []
    key_parts: list[tuple[Tensor, Tensor]] = []
    positives = []
    for first in range(0, len(image), chunk_size):
        logits = _logits(image, text, scale, first, chunk_size)
        positives.append(logits.diagonal(offset + first))
        for parts, dim in ((row_parts, 1), (key_parts, 0)):
            # The largest logit is subtracted, as exp(100) is beyond what fp32 holds at CLIP's highest scale.
            largest = logits.amax(dim=dim)
            parts.append((largest, (logits - largest.unsqueeze(dim)).exp().sum(dim=dim)))
    row_largest, row_total = map(torch.cat, zip(*row_parts, strict=True))
    largest, total = map(torch.stack, zip(*key_parts, strict=True))
    # The chunks of a column had different maxima, so their sums are rescaled to the common one.
    key_largest = largest.amax(dim=0)
    key_total = (total * (largest - key_largest).exp()).sum(dim=0)
    return row_largest, row_total, key_largest, key_total, torch.cat(positives)


def _gradients(image: Tensor, text: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    row_largest, row_total, key_largest, key_total, offset, first, num_rows = rest
    if runs_triton(image):
        by_kernel: tuple[Tensor, Tensor] = launchers().pair_gradients(
            image, text, scale, rest[:4], offset, first, num_rows
        )
        return by_kernel
    logits = _logits(image, text, scale, first, num_rows)
    rows = slice(first, first + num_rows)
    gradients = (logits - row_largest[rows, None]).exp() / row_total[rows, None]
    gradients += (logits - key_largest).exp() / key_total
    # Each positive pair is the answer in both directions.
    gradients.diagonal(offset + first).sub_(2.0)
    return gradients, (gradients * logits).sum()


def _logits(image: Tensor, text: Tensor, scale: Tensor, first: int, num_rows: int) -> Tensor:
    return scale * image[first : first + num_rows] @ text.T


def _empty_statistics(image: Tensor, text: Tensor, *_: Any) -> Statistics:
    rows = image.new_empty(len(image))
    keys = image.new_empty(len(text))
    return rows, torch.empty_like(rows), keys, torch.empty_like(keys), torch.empty_like(rows)


_STATISTICS = Op(
    "pair_statistics(Tensor image, Tensor text, Tensor scale, SymInt offset, int chunk_size)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _statistics,
    _empty_statistics,
)
_GRADIENTS = Op(
    "pair_gradients(Tensor image, Tensor text, Tensor scale, Tensor row_largest, Tensor row_total, Tensor key_largest,"
    " Tensor key_total, SymInt offset, SymInt first, SymInt num_rows) -> (Tensor, Tensor)",
    _gradients,
    lambda image, text, scale, *rest: (image.new_empty((rest[-1], len(text))), image.new_empty(())),
)
