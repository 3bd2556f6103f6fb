"""Access to the parts of a timm or open_clip vision transformer, which a dense encoder calls one by one."""

# B images, P prefix tokens, N patches, D width, H heads

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.layers import PatchEmbed, RotaryEmbeddingCat
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import ClipModel, vision_tower
from vfm.plugin import UserError
from vfm_eva.dense.relative import RelativeScores
from vfm_eva.dense.windows import Grid

PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")


class Trunk:
    """Patches, prefix tokens, positions and blocks of a vision transformer.

    The transformer is not changed. `visual` is the module, `blocks` its blocks, `final_norm` the norm after the last
    block, `width` the width D, `patch_size` the side of a patch in pixels, `grid` the rows and columns of patches at
    the model's image size.
    """

    def __init__(self, model: ClipModel | nn.Module) -> None:
        """Find the parts.

        Raises:
            UserError: If the model has no patch tokens or no square patches, a convolutional stem, or relative
                positions.
        """
        tower = vision_tower(model)
        self.visual: Any = tower.visual
        self.name = tower.name
        self.width = tower.width
        self.grid = tower.grid
        self.blocks: Sequence[nn.Module] = tower.blocks
        self.final_norm = tower.norm
        if tower.patch_size[0] != tower.patch_size[1]:
            raise UserError(f"{tower.name}: expected square patches, got {tower.patch_size}")
        self.patch_size = tower.patch_size[0]
        self.is_open_clip = isinstance(tower.visual, OpenClipViT)
        if not self.is_open_clip and not isinstance(self.visual.patch_embed, PatchEmbed):
            raise UserError(f"{tower.name}: expected a plain patch embedding, got one with a convolutional stem")
        if any("rel_pos" in name or "relative_position" in name for name, _ in tower.visual.named_parameters()):
            raise UserError(f"{tower.name}: its relative positions are for one image size, so it takes no dense head")

    def patches(self, images: Tensor) -> Tensor:
        """Embed the patches without positions, (B, D, rows, columns)."""
        if self.is_open_clip:
            embedded: Tensor = self.visual.conv1(images)
            return embedded
        embed = self.visual.patch_embed
        tokens = embed.norm(embed.proj(images).permute(0, 2, 3, 1))
        return tokens.permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def prefix(self) -> Tensor:
        """Collect the prefix tokens with their positions, (1, P, D)."""
        if self.is_open_clip:
            return (self.visual.class_embedding + self.visual.positional_embedding[0])[None, None]  # type: ignore[no-any-return]
        values = [getattr(self.visual, name, None) for name in PREFIX_TOKENS]
        present = [value for value in values if value is not None]
        if present:
            tokens = torch.cat(present, dim=1)
        else:
            tokens = next(self.visual.parameters()).new_zeros(1, 0, self.width)
        if self.visual.pos_embed is None or self.visual.no_embed_class:
            return tokens
        return tokens + self.visual.pos_embed[:, : tokens.shape[1]]  # type: ignore[no-any-return]

    def positions(self, grid: Grid) -> Tensor | None:
        """Compute the learned positions for a grid of patches, (1, rows * columns, D), or None without learned ones.

        They are interpolated as in EVA-02's detection code: bicubic, without the antialiasing of timm's loading.
        """
        visual = self.visual
        if self.is_open_clip:
            stored = visual.positional_embedding[None]
        else:
            stored = visual.pos_embed
        if stored is None:
            return None
        # Positions of the class and register tokens come first.
        patches = stored[:, stored.shape[1] - self.grid[0] * self.grid[1] :]
        if grid == tuple(self.grid):
            return patches  # type: ignore[no-any-return]
        maps = patches.unflatten(1, self.grid).permute(0, 3, 1, 2)  # (1, D, rows, columns)
        resized = F.interpolate(maps.float(), size=grid, mode="bicubic", align_corners=False)
        return resized.to(patches.dtype).flatten(2).transpose(1, 2)

    def before_blocks(self, tokens: Tensor) -> Tensor:
        """Apply the layers between embedding and first block.

        They are dropout and a norm, if the model has them.
        """
        if self.is_open_clip:
            normed: Tensor = self.visual.ln_pre(tokens)
            return normed
        return self.visual.norm_pre(self.visual.pos_drop(tokens))  # type: ignore[no-any-return]

    def rotary(self, grid: Grid) -> Tensor | None:
        """Compute the rotary positions of a grid in timm's form, (N, 2 D / H), or a table for each block and head."""
        rope = getattr(self.visual, "rope", None)
        if rope is None:
            return None
        if not isinstance(rope, RotaryEmbeddingCat):
            return rope.get_embed(shape=list(grid))  # type: ignore[no-any-return]
        if rope.feat_shape is not None and tuple(rope.feat_shape) != grid:
            # The encoder's own table stays, since other code calls the encoder at its own size.
            rope = deepcopy(rope)
            rope.update_feat_shape(list(grid))
        return rope.get_embed(shape=list(grid))  # type: ignore[no-any-return]

    def apply_block(
        self,
        number: int,
        tokens: Tensor,
        rope: Tensor | None,
        visible: Tensor | None = None,
        copy: nn.Module | None = None,
        relative: tuple[RelativeScores, Grid] | None = None,
    ) -> Tensor:
        """Apply a block.

        Args:
            number: Number of the block.
            tokens: (B, N, D).
            rope: A row for each of the N tokens. Rows with sin 0 and cos 1 leave a token unchanged.
            visible: True where a token (row) sees another (column), (B, 1, N, N). None: everywhere.
            copy: A copy of the block with separate weights, to apply in its place.
            relative: Relative positions and the grid of the patches among the tokens, instead of `visible`.

        Returns:
            (B, N, D).
        """
        block: Any = self.blocks[number] if copy is None else copy
        if relative is not None:
            visible = relative[0](block, tokens, relative[1])
        if self.is_open_clip:
            return block(tokens, attn_mask=_added(visible, block.attn.num_heads))  # type: ignore[no-any-return]
        if rope is None:
            return block(tokens) if visible is None else block(tokens, attn_mask=visible)  # type: ignore[no-any-return]
        if getattr(self.visual, "rope_mixed", False):
            rope = rope[number]
        # Set for this call only: without this wrapper, the encoder passes no rotary rows for prefix tokens.
        before = block.attn.num_prefix_tokens
        block.attn.num_prefix_tokens = 0
        try:
            return block(tokens, rope=rope, attn_mask=visible)  # type: ignore[no-any-return]
        finally:
            block.attn.num_prefix_tokens = before


def unrotated_rows(rope: Tensor, count: int) -> Tensor:
    """Prepend `count` rows that rotate nothing to rotary positions."""
    rows = rope[..., :1, :].expand(*rope.shape[:-2], count, rope.shape[-1])
    sin, cos = rows.chunk(2, dim=-1)
    return torch.cat([torch.cat([torch.zeros_like(sin), torch.ones_like(cos)], dim=-1), rope], dim=-2)


def _added(visible: Tensor | None, num_heads: int) -> Tensor | None:
    """Convert a mask to the form of torch's attention layer, (B H, N, N).

    Its numbers are added to the scores.
    """
    if visible is None:
        return None
    hidden = torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, float("-inf"))
    return hidden.expand(-1, num_heads, -1, -1).flatten(0, 1)
