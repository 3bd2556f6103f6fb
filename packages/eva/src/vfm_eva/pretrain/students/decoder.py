"""EVA-L's light decoder, which predicts masked patches from the encoded visible patches."""

# B batch, N patches, V visible patches, P prefix tokens, D student width, W decoder width

from __future__ import annotations

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vfm_kernels import scatter_tokens

__all__ = ["MaskDecoder", "sincos_positions"]


class MaskDecoder(nn.Module):
    """A small transformer over all positions.

    It takes encoded tokens for visible patches, and mask tokens for the others.

    Args:
        student_width: D.
        grid: Rows and columns of the patches.
        num_prefix_tokens: P, class and register tokens of the student.
        width: W, a multiple of 4 (for sine-cosine positions) and of `num_heads`.
        depth: Number of blocks.
        num_heads: Attention heads of each block.

    Source: He et al. 2021, MAE (arXiv:2111.06377), section 3. EVA-L's decoder is 512 wide, 4 deep, with 16 heads.
    """

    def __init__(
        self,
        student_width: int,
        grid: tuple[int, int],
        num_prefix_tokens: int,
        *,
        width: int,
        depth: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.width = width
        self.num_patches = grid[0] * grid[1]
        self.num_prefix_tokens = num_prefix_tokens
        self.embed = nn.Linear(student_width, width)
        self.blocks = nn.ModuleList([Block(width, num_heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        # A parameter, although it is fixed, so that checkpoints have it, as MAE's do.
        self.pos_embed = nn.Parameter(sincos_positions(grid, width, num_prefix_tokens), requires_grad=False)

    def forward(self, tokens: Tensor, index: Tensor, mask_token: Tensor) -> Tensor:
        """Decode the tokens of all patches, (B, N, W).

        Args:
            tokens: (B, P + V, D), the encoded prefix tokens and visible patches.
            index: (B, V), positions of the visible patches.
            mask_token: (W,).
        """
        tokens = self.embed(tokens)  # (B, P + V, W)
        prefix = tokens[:, : self.num_prefix_tokens]
        visible = tokens[:, self.num_prefix_tokens :]
        patches = scatter_tokens(visible, index, self.num_patches, fill=mask_token)  # (B, N, W)
        tokens = torch.cat([prefix, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        decoded: Tensor = self.norm(tokens[:, self.num_prefix_tokens :])
        return decoded


def sincos_positions(grid: tuple[int, int], width: int, num_prefix_tokens: int) -> Tensor:
    """Build fixed sine-cosine position embeddings (MAE).

    Args:
        grid: Rows and columns of the patches.
        width: Width W of a token.
        num_prefix_tokens: Number P of prefix tokens. Their embeddings are zero.

    Returns:
        (1, P + N, W).
    """
    positions = build_sincos2d_pos_embed(list(grid), width)
    return torch.cat([positions.new_zeros(num_prefix_tokens, width), positions])[None]
