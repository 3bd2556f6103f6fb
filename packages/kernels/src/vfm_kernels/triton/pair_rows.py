"""Kernels of contrastive losses of rows of logits, with their gradients in place."""

# c rows of a chunk of logits, N keys
# mypy: ignore-errors

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vfm_kernels.triton.launch import launch, settings


@triton.jit
def cross_entropy_rows_kernel(logits, losses, num_keys, row_stride, first_positive, BLOCK: tl.constexpr):
    """Compute the loss of a row in each program, and overwrite the row's logits with their gradient."""
    row = tl.program_id(0).to(tl.int64)
    at, places = logits + row * row_stride, tl.arange(0, BLOCK)
    # A running maximum for each place in the block, joined once after the loop. It begins at -1e30 and not at -inf,
    # because a place without a key, or with logits of -inf alone, would compute -inf - (-inf) = NaN.
    largest = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_keys, BLOCK):
        x = tl.load(at + start + places, mask=places < num_keys - start, other=float("-inf")).to(tl.float32)
        before, largest = largest, tl.maximum(largest, x)
        total = total * tl.exp(before - largest) + tl.exp(x - largest)
    row_largest = tl.max(largest, axis=0)
    row_total = tl.sum(total * tl.exp(largest - row_largest), axis=0)
    positive = first_positive + row
    tl.store(losses + row, tl.log(row_total) + (row_largest - tl.load(at + positive).to(tl.float32)))
    tl.debug_barrier()  # all threads have read the positive logit before one overwrites it
    for start in range(0, num_keys, BLOCK):
        inside = places < num_keys - start
        x = tl.load(at + start + places, mask=inside, other=0.0).to(tl.float32)
        # Not exp(x - log_sum): a log-sum of 100 is rounded to 4e-6, which would scale all probabilities.
        grad = tl.exp(x - row_largest) / row_total - tl.where(start + places == positive, 1.0, 0.0)
        tl.store(at + start + places, grad.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid_rows_kernel(logits, losses, num_keys, row_stride, first_positive, BLOCK: tl.constexpr):
    """Sum the losses of a row's pairs in each program, and overwrite their logits with the gradients."""
    row = tl.program_id(0).to(tl.int64)
    at, places = logits + row * row_stride, tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_keys, BLOCK):
        inside = places < num_keys - start
        x = tl.load(at + start + places, mask=inside, other=0.0).to(tl.float32)
        sign = tl.where(start + places == first_positive + row, -1.0, 1.0)
        x *= sign  # negative for the positive key, so that softplus(x) is the loss of every pair
        small = tl.exp(-tl.abs(x))
        # log(1 + small) rounds to 0 for confident pairs, which are nearly all; below 0.01 its series is exact to fp32.
        rest = tl.where(small < 0.01, small * (1.0 - small * (0.5 - small / 3)), tl.log(1.0 + small))
        total += tl.where(inside, tl.maximum(x, 0.0) + rest, 0.0)
        chance = tl.where(x >= 0, 1.0, small) / (1.0 + small)
        tl.store(at + start + places, (sign * chance).to(logits.dtype.element_ty), mask=inside)
    tl.store(losses + row, tl.sum(total, axis=0))


def cross_entropy_rows(logits: Tensor, first_positive: int) -> Tensor:
    """Compute the losses (c,) of rows of logits (c, N), and overwrite the logits with their gradients."""
    return _launch_rows(cross_entropy_rows_kernel, logits, first_positive)


def sigmoid_rows(logits: Tensor, first_positive: int) -> Tensor:
    """Compute the losses (c,) of rows of logits (c, N), and overwrite the logits with their gradients."""
    return _launch_rows(sigmoid_rows_kernel, logits, first_positive)


def _launch_rows(kernel: Any, logits: Tensor, first_positive: int) -> Tensor:
    num_rows, num_keys = logits.shape
    losses = torch.empty(num_rows, device=logits.device)
    chosen = settings("pair_rows", num_keys, logits.device)
    launch(kernel, (num_rows,), logits.device, logits, losses, num_keys, logits.stride(0), first_positive, **chosen)
    return losses
