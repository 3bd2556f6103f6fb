"""Cosine of predicted and target tokens with its gradient: kernels and their launch."""

# R rows (tokens), D width
# mypy: ignore-errors

import torch
import triton
import triton.language as tl
from torch import Tensor

from vfm_kernels.triton.launch import block_of, launch, settings, with_adjacent_columns


@triton.jit
def masked_cosine_kernel(
    prediction,
    target,
    bool_mask,
    cosines,
    d_prediction,
    width,
    prediction_row,
    target_row,
    eps,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one token's cosine and d cosine / d prediction in each program, from one read of the features.

    A token that is not masked gets zeros, and its features are not read: 59 % of the reads with EVA's masks.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    read = inside
    if HAS_MASK:
        read = tl.where(tl.load(bool_mask + row) != 0, inside, False)
    p = tl.load(prediction + row * prediction_row + columns, mask=read, other=0.0).to(tl.float32)
    t = tl.load(target + row * target_row + columns, mask=read, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(p * p, axis=0))
    p_inverse = 1.0 / tl.maximum(length, eps)
    t *= 1.0 / tl.maximum(tl.sqrt(tl.sum(t * t, axis=0)), eps)
    cosine = tl.sum(p * t, axis=0) * p_inverse
    # Below eps the cosine is divided by eps and not by the length, so the gradient has no part along the prediction.
    along = tl.where(length > eps, cosine * p_inverse, 0.0)
    d = (t - along * p) * p_inverse
    tl.store(cosines + row, cosine)
    tl.store(d_prediction + row * width + columns, d.to(d_prediction.dtype.element_ty), mask=inside)


@triton.jit
def scale_kernel(source, factor, target, count, BLOCK: tl.constexpr):
    """Multiply by a factor on the device in fp32, where torch would round the factor to half precision first."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    x = tl.load(source + places, mask=inside, other=0.0).to(tl.float32) * tl.load(factor)
    tl.store(target + places, x.to(target.dtype.element_ty), mask=inside)


def masked_cosine(prediction: Tensor, target: Tensor, bool_mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return each token's cosine (R,) and its gradient for the prediction (R, D); the mask is (R,)."""
    prediction, target = with_adjacent_columns(prediction), with_adjacent_columns(target)
    num_rows, width = prediction.shape
    cosines = torch.empty(num_rows, device=prediction.device)
    d_prediction = prediction.new_empty(num_rows, width)
    launch(
        masked_cosine_kernel,
        (num_rows,),
        prediction.device,
        prediction,
        target,
        None if bool_mask is None else bool_mask.contiguous().view(torch.uint8),
        cosines,
        d_prediction,
        width,
        prediction.stride(0),
        target.stride(0),
        eps,
        HAS_MASK=bool_mask is not None,
        BLOCK=block_of(width),
        **settings("masked_cosine", width, prediction.device),
    )
    return cosines, d_prediction


def scale(source: Tensor, factor: Tensor) -> Tensor:
    """Multiply a contiguous tensor by a scalar tensor in fp32."""
    target = torch.empty_like(source)
    chosen = settings("scale", source.shape[-1], source.device)
    grid = (-(-source.numel() // chosen["BLOCK"]),)
    launch(scale_kernel, grid, source.device, source, factor, target, source.numel(), **chosen)
    return target
