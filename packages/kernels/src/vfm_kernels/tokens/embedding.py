"""Build a masked student's input from patch tokens, the mask token, CLS and positions."""

# B batch, N patches, D width

from typing import Any

import torch
from torch import Tensor

from vfm_kernels.dispatch.dispatch import fused, launchers, runs_triton
from vfm_kernels.dispatch.library import Op
from vfm_kernels.dispatch.precision import at_least_fp32


def mask_tokens(
    patch_tokens: Tensor,
    mask_token: Tensor,
    bool_mask: Tensor,
    *,
    cls_token: Tensor | None = None,
    pos_embed: Tensor | None = None,
) -> Tensor:
    """Put the learned mask token where patches are masked (EVA, BEiT, SimMIM).

    All shapes are static: they do not depend on the number of masked patches.

    Args:
        patch_tokens: (B, N, D), without CLS and before position embeddings.
        mask_token: D values in any shape, such as (1, 1, D), cast to the tokens' dtype.
        bool_mask: (B, N), True = masked.
        cls_token: D values in any shape, put before the patches.
        pos_embed: (N, D), or (N + 1, D) with CLS, with any leading dimensions of 1. Added last.

    Returns:
        (B, N, D), or (B, N + 1, D) with CLS, in the tokens' dtype.

    Raises:
        ValueError: If shapes are inconsistent.
    """
    if bool_mask.shape != patch_tokens.shape[:2]:
        raise ValueError(f"expected bool_mask of shape {tuple(patch_tokens.shape[:2])}, got {tuple(bool_mask.shape)}")
    num_tokens = patch_tokens.shape[1] + int(cls_token is not None)
    width = patch_tokens.shape[2]
    if pos_embed is not None and pos_embed.numel() != num_tokens * width:
        raise ValueError(f"expected pos_embed of {num_tokens} tokens of {width}, got {tuple(pos_embed.shape)}")
    arguments = (
        patch_tokens,
        mask_token.reshape(width),
        bool_mask.bool(),
        None if cls_token is None else cls_token.reshape(width),
        None if pos_embed is None else pos_embed.reshape(num_tokens, width),
    )
    if not fused("mask_tokens", patch_tokens):
        return mask_tokens_plain(*arguments)
    masked: Tensor = _MASK(*arguments)
    return masked


def mask_tokens_plain(
    patch_tokens: Tensor, mask_token: Tensor, bool_mask: Tensor, cls_token: Tensor | None, pos_embed: Tensor | None
) -> Tensor:
    """Compute `mask_tokens` in plain torch, with tokens of shape (D,) and positions of shape (N + 1, D)."""
    dtype = patch_tokens.dtype
    tokens = torch.where(bool_mask.unsqueeze(-1), mask_token.to(dtype), patch_tokens)
    if cls_token is not None:
        tokens = torch.cat([cls_token.to(dtype).expand(len(tokens), 1, -1), tokens], dim=1)
    if pos_embed is None:
        return tokens
    # Rounded once, after the sum, as the kernel does.
    return (at_least_fp32(tokens) + pos_embed).to(dtype)


def _run(
    patch_tokens: Tensor, mask_token: Tensor, bool_mask: Tensor, cls_token: Tensor | None, pos_embed: Tensor | None
) -> Tensor:
    if runs_triton(patch_tokens):
        masked: Tensor = launchers().mask_tokens(patch_tokens, mask_token, bool_mask, cls_token, pos_embed)
        return masked
    return mask_tokens_plain(patch_tokens, mask_token, bool_mask, cls_token, pos_embed)


def _run_backward(d_out: Tensor, bool_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of patch tokens, mask token and positions in closed form. CLS has the first position's."""
    if runs_triton(d_out):
        d_patches, d_token, d_positions = launchers().mask_tokens_backward(d_out, bool_mask)
        return d_patches, d_token, d_positions
    d_patches = d_out[:, d_out.shape[1] - bool_mask.shape[1] :]
    masked = bool_mask.unsqueeze(-1)
    d_token = at_least_fp32(torch.where(masked, d_patches, 0.0)).sum(dim=(0, 1))
    return torch.where(masked, 0.0, d_patches), d_token, at_least_fp32(d_out).sum(dim=0)


def _fake(
    patch_tokens: Tensor, mask_token: Tensor, bool_mask: Tensor, cls_token: Tensor | None, pos_embed: Tensor | None
) -> Tensor:
    batch, num_patches, width = patch_tokens.shape
    return patch_tokens.new_empty(batch, num_patches + int(cls_token is not None), width)


def _fake_backward(d_out: Tensor, bool_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(d_out.dtype, torch.float32)
    d_patches = d_out.new_empty(*bool_mask.shape, d_out.shape[-1])
    return d_patches, d_out.new_empty(d_out.shape[-1], dtype=dtype), d_out.new_empty(d_out.shape[1:], dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask_token, bool_mask, cls_token, pos_embed = inputs
    ctx.save_for_backward(bool_mask)
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (mask_token, cls_token, pos_embed)]


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    (bool_mask,) = ctx.saved_tensors
    d_patches, d_token, d_positions = _MASK_BACKWARD(d_out, bool_mask)
    token_dtype, cls_dtype, positions_dtype = ctx.dtypes
    d_cls = None if cls_dtype is None else d_positions[0].to(cls_dtype)
    d_positions = None if positions_dtype is None else d_positions.to(positions_dtype)
    return d_patches, d_token.to(token_dtype), None, d_cls, d_positions


_MASK = Op(
    "mask_tokens(Tensor patch_tokens, Tensor mask_token, Tensor bool_mask, Tensor? cls_token, Tensor? pos_embed)"
    " -> Tensor",
    _run,
    _fake,
)
_MASK_BACKWARD = Op(
    "mask_tokens_backward(Tensor d_out, Tensor bool_mask) -> (Tensor, Tensor, Tensor)", _run_backward, _fake_backward
)
_MASK.differentiate(_backward, _keep)
