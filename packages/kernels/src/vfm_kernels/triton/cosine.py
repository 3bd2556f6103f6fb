"""Kernels of the cosine of predicted and target tokens, and of its gradient."""

# R rows (tokens), D width
# mypy: ignore-errors

import torch
import triton
import triton.language as tl
from torch import Tensor

from vfm_kernels.triton.launch import block_of, launch, settings, with_adjacent_columns


@triton.jit
def load_token(
    prediction, target, bool_mask, width, prediction_row, target_row, eps, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr
):
    """Load the prediction and the target of a token.

    The features of a token that is not masked are not read. With EVA's masks this saves 59 % of the reads.

    Returns:
        The prediction, the target scaled to length 1, the prediction's length and its inverse.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    read = columns < width
    if HAS_MASK:
        read = tl.where(tl.load(bool_mask + row) != 0, read, False)
    p = tl.load(prediction + row * prediction_row + columns, mask=read, other=0.0).to(tl.float32)
    t = tl.load(target + row * target_row + columns, mask=read, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(p * p, axis=0))
    t *= 1.0 / tl.maximum(tl.sqrt(tl.sum(t * t, axis=0)), eps)
    return p, t, length, 1.0 / tl.maximum(length, eps)


@triton.jit
def masked_cosine_kernel(
    prediction,
    target,
    bool_mask,
    cosines,
    width,
    prediction_row,
    target_row,
    eps,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute a token's cosine in each program, or 0 for a token that is not masked."""
    p, t, _, p_inverse = load_token(
        prediction, target, bool_mask, width, prediction_row, target_row, eps, HAS_MASK, BLOCK
    )
    tl.store(cosines + tl.program_id(0), tl.sum(p * t, axis=0) * p_inverse)


@triton.jit
def masked_cosine_backward_kernel(
    factor,
    prediction,
    target,
    bool_mask,
    d_prediction,
    width,
    prediction_row,
    target_row,
    eps,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute factor * d cosine / d prediction of a token in each program, or zeros for a token that is not masked."""
    p, t, length, p_inverse = load_token(
        prediction, target, bool_mask, width, prediction_row, target_row, eps, HAS_MASK, BLOCK
    )
    # Below eps the cosine is divided by eps and not by the length, so the gradient has no part along the prediction.
    along = tl.where(length > eps, tl.sum(p * t, axis=0) * p_inverse * p_inverse, 0.0)
    d = (t - along * p) * (p_inverse * tl.load(factor))
    columns = tl.arange(0, BLOCK)
    at = d_prediction + tl.program_id(0).to(tl.int64) * width + columns
    tl.store(at, d.to(d_prediction.dtype.element_ty), mask=columns < width)


def masked_cosine(prediction: Tensor, target: Tensor, bool_mask: Tensor | None, eps: float) -> Tensor:
    """Compute each token's cosine by a kernel.

    Args:
        prediction: (R, D).
        target: (R, D).
        bool_mask: (R,). Tokens where it is False have cosine 0.
        eps: Smallest length of a vector.

    Returns:
        (R,).
    """
    cosines = torch.empty(len(prediction), device=prediction.device)
    _launch(masked_cosine_kernel, (), prediction, target, bool_mask, cosines, eps)
    return cosines


def masked_cosine_backward(
    factor: Tensor, prediction: Tensor, target: Tensor, bool_mask: Tensor | None, eps: float
) -> Tensor:
    """Compute the gradient of the cosines for the prediction (R, D), times a factor on the device."""
    d_prediction = prediction.new_empty(prediction.shape)
    _launch(masked_cosine_backward_kernel, (factor,), prediction, target, bool_mask, d_prediction, eps)
    return d_prediction


def _launch(kernel, before, prediction: Tensor, target: Tensor, bool_mask: Tensor | None, result: Tensor, eps: float):
    prediction, target = with_adjacent_columns(prediction), with_adjacent_columns(target)
    num_rows, width = prediction.shape
    launch(
        kernel,
        (num_rows,),
        prediction.device,
        *before,
        prediction,
        target,
        None if bool_mask is None else bool_mask.contiguous().view(torch.uint8),
        result,
        width,
        prediction.stride(0),
        target.stride(0),
        eps,
        HAS_MASK=bool_mask is not None,
        BLOCK=block_of(width),
        **settings("masked_cosine", width, prediction.device),
    )
