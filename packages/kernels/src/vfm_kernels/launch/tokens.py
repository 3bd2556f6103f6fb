"""Launches what moves tokens: masking, gathering, scattering."""

import torch
from torch import Tensor

from vfm_kernels.launch import block_of, launch, settings, with_adjacent_columns
from vfm_kernels.triton.embedding import mask_tokens_backward_kernel, mask_tokens_kernel
from vfm_kernels.triton.tokens import gather_tokens_kernel, scatter_tokens_kernel


def mask(
    patch_tokens: Tensor, mask_token: Tensor, bool_mask: Tensor, cls_token: Tensor | None, pos_embed: Tensor | None
) -> Tensor:
    """The op `mask_tokens`: patch tokens (B, N, D), a token (D,), a mask (B, N), CLS (D,), positions (N + 1, D)."""
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


def mask_backward(d_out: Tensor, bool_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of patch tokens (B, N, D), mask token (D,) and positions (N or N + 1, D), the last two in fp32."""
    batch, num_tokens, width = d_out.shape
    num_patches = bool_mask.shape[1]
    d_patches = d_out.new_empty(batch, num_patches, width)
    d_tokens, d_positions = (torch.empty(num_tokens, width, device=d_out.device) for _ in range(2))
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


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The op `gather_tokens`: tokens (B, N, D), index (B, K)."""
    tokens = with_adjacent_columns(tokens)
    (batch, num_kept), width = index.shape, tokens.shape[-1]
    out = tokens.new_empty(batch, num_kept, width)
    launch(
        gather_tokens_kernel,
        (num_kept, batch),
        out.device,
        tokens,
        index.contiguous(),
        out,
        num_kept,
        width,
        *tokens.stride()[:2],
        BLOCK=block_of(width),
        **settings("gather_tokens", width, out.device),
    )
    return out


def scatter(tokens: Tensor, index: Tensor, num_tokens: int, fill: Tensor | None) -> Tensor:
    """The op `scatter_tokens`: tokens (B, K, D), index (B, K), fill (B, N, D), of any strides."""
    tokens = with_adjacent_columns(tokens)
    (batch, num_kept), width = index.shape, tokens.shape[-1]
    out = tokens.new_empty(batch, num_tokens, width)
    launch(
        scatter_tokens_kernel,
        (num_tokens, batch),
        out.device,
        tokens,
        index.contiguous(),
        fill,
        out,
        num_kept,
        num_tokens,
        width,
        *tokens.stride()[:2],
        *((0, 0, 0) if fill is None else fill.stride()),
        HAS_FILL=fill is not None,
        BLOCK_KEPT=block_of(num_kept),
        BLOCK=block_of(width),
        **settings("scatter_tokens", width, out.device),
    )
    return out
