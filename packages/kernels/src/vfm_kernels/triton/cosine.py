"""Cosine of predicted and target tokens, with its gradient."""
# mypy: ignore-errors

import triton
import triton.language as tl


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
    """One program a token: its cosine and d cosine / d prediction; zeros, and nothing read, where it is not masked."""
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
    along = tl.where(
        length > eps, cosine * p_inverse, 0.0
    )  # below eps the length is not divided by, so none of it is lost
    d = (t - along * p) * p_inverse
    tl.store(cosines + row, cosine)
    tl.store(d_prediction + row * width + columns, d.to(d_prediction.dtype.element_ty), mask=inside)


@triton.jit
def scale_kernel(source, factor, target, count, BLOCK: tl.constexpr):
    """`source * factor`, multiplied in fp32, as torch would not do with a factor that lies on the device."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    x = tl.load(source + places, mask=inside, other=0.0).to(tl.float32) * tl.load(factor)
    tl.store(target + places, x.to(target.dtype.element_ty), mask=inside)
