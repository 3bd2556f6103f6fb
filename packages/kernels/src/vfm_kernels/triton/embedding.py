"""Mask tokens, CLS and positions of what the student sees."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def mask_tokens_kernel(
    patch_tokens,
    mask_token,
    bool_mask,
    cls_token,
    pos_embed,
    out,
    num_patches,
    width,
    patch_batch,
    patch_token,
    HAS_CLS: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a token of the result."""
    token, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.zeros((BLOCK,), tl.float32)
    patch = token - HAS_CLS
    if patch >= 0:
        masked = tl.load(bool_mask + batch * num_patches + patch) != 0
        if masked:
            x = tl.load(mask_token + columns, mask=inside, other=0.0).to(tl.float32)
        else:
            at = patch_tokens + batch * patch_batch + patch * patch_token
            x = tl.load(at + columns, mask=inside, other=0.0).to(tl.float32)
    elif HAS_CLS:
        x = tl.load(cls_token + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_POSITIONS:
        x += tl.load(pos_embed + token * width + columns, mask=inside, other=0.0).to(tl.float32)
    row = batch * (num_patches + HAS_CLS) + token
    tl.store(out + row * width + columns, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def mask_tokens_backward_kernel(
    d_out,
    bool_mask,
    d_patches,
    d_tokens,
    d_positions,
    num_samples,
    num_patches,
    width,
    HAS_CLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a token's block of channels, over all samples: sums without atomics, in a fixed order."""
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    patch = token - HAS_CLS
    d_position = tl.zeros((BLOCK,), tl.float32)
    d_token = tl.zeros((BLOCK,), tl.float32)
    for batch in range(num_samples):
        row = batch * (num_patches + HAS_CLS).to(tl.int64) + token
        d = tl.load(d_out + row * width + columns, mask=inside, other=0.0)
        d_position += d.to(tl.float32)
        if patch >= 0:
            at = batch * num_patches.to(tl.int64) + patch
            masked = tl.load(bool_mask + at) != 0
            d_token += tl.where(masked, d.to(tl.float32), 0.0)
            tl.store(d_patches + at * width + columns, tl.where(masked, 0.0, d), mask=inside)
    tl.store(d_positions + token * width + columns, d_position, mask=inside)
    tl.store(d_tokens + token * width + columns, d_token, mask=inside)
