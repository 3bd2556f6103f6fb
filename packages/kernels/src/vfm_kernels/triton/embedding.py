"""Kernels of the mask tokens, CLS and positions of a student's input."""

# B batch, N patches, D width
# mypy: ignore-errors

import torch
import triton
import triton.language as tl
from torch import Tensor

from vfm_kernels.triton.launch import block_of, launch, settings, with_adjacent_columns


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
    """Write one token of the result in each program. A masked patch is not read."""
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
    """Sum one token's block of channels over all samples in each program. Without atomics, the order is fixed.

    One warp with 256 channels gives 257 x 4 programs for a width of 1024, enough for all multiprocessors.
    """
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


def mask_tokens(
    patch_tokens: Tensor, mask_token: Tensor, bool_mask: Tensor, cls_token: Tensor | None, pos_embed: Tensor | None
) -> Tensor:
    """Build the tokens of masked image modelling by a kernel.

    Args:
        patch_tokens: (B, N, D).
        mask_token: (D,), replaces masked patches.
        bool_mask: (B, N), True = masked.
        cls_token: (D,), placed before the patches.
        pos_embed: (N, D), or (N + 1, D) with a CLS token.

    Returns:
        (B, N, D), or (B, N + 1, D) with a CLS token.
    """
    patch_tokens = with_adjacent_columns(patch_tokens)
    batch, num_patches, width = patch_tokens.shape
    num_tokens = num_patches + int(cls_token is not None)
    out = patch_tokens.new_empty(batch, num_tokens, width)
    launch(
        mask_tokens_kernel,
        (num_tokens, batch),
        out.device,
        patch_tokens,
        mask_token.contiguous(),
        bool_mask.contiguous().view(torch.uint8),
        cls_token if cls_token is None else cls_token.contiguous(),
        pos_embed if pos_embed is None else pos_embed.contiguous(),
        out,
        num_patches,
        width,
        *patch_tokens.stride()[:2],
        HAS_CLS=cls_token is not None,
        HAS_POSITIONS=pos_embed is not None,
        BLOCK=block_of(width),
        **settings("mask_tokens", width, out.device),
    )
    return out


def mask_tokens_backward(d_out: Tensor, bool_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of patches (B, N, D), and in fp32 of mask token (D,) and positions (N or N + 1, D)."""
    batch, num_tokens, width = d_out.shape
    num_patches = bool_mask.shape[1]
    d_patches = d_out.new_empty(batch, num_patches, width)
    d_tokens = torch.empty(num_tokens, width, device=d_out.device)
    d_positions = torch.empty_like(d_tokens)
    chosen = settings("mask_tokens_backward", width, d_out.device)
    launch(
        mask_tokens_backward_kernel,
        (num_tokens, -(-width // chosen["BLOCK"])),
        d_out.device,
        d_out.contiguous(),
        bool_mask.contiguous().view(torch.uint8),
        d_patches,
        d_tokens,
        d_positions,
        batch,
        num_patches,
        width,
        HAS_CLS=num_tokens > num_patches,
        **chosen,
    )
    return d_patches, d_tokens.sum(dim=0), d_positions
