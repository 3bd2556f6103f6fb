"""The parts of the last block of any vision transformer. Training-free segmentation combines them differently.

The tokens before the block are read with their rotary positions as the encoder computes them, so every image size and
every kind of positions works. With the block's own attention, the parts give the block's output, which a test compares.
"""

# B images, L tokens (the prefix: class and register tokens, then N patches), D width, H heads of width d

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import Attention, AttentionPoolLatent, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.vision.vision_sizes import Resample, resample_positions
from vfm.models.vision.vision_towers import TensorMap, VisionTower, read_tokens, vision_tower

TIMM_PARTS = {EvaBlock: EvaAttention, Block: Attention}


@dataclass(frozen=True)
class LastBlock:
    """The tokens before the last block, its projections of them, and its other parts."""

    tokens: Tensor  # x, (B, L, D)
    queries: Tensor  # (B, H, L, d), like keys and values; normalised if the block does so, without rotary positions
    keys: Tensor
    values: Tensor
    grid: tuple[int, int]  # rows and columns of the patches
    rotate: TensorMap  # applies rotary positions to queries or keys; the identity in a block without them
    project: TensorMap  # heads (B, H, L, d) -> the block's change of its input, (B, L, D)
    feed_forward: TensorMap  # z -> z + MLP(norm(z)), (B, L, D)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of class and register tokens."""
        return self.tokens.shape[1] - self.grid[0] * self.grid[1]

    @property
    def scale(self) -> float:
        """Factor of the products of queries and keys."""
        return float(self.queries.shape[-1] ** -0.5)

    def patch_maps(self, tokens: Tensor) -> Tensor:
        """Arrange the patches of (B, L, D) on their grid, (B, rows, columns, D)."""
        return tokens[:, self.num_prefix_tokens :].reshape(len(tokens), *self.grid, -1)


@dataclass(frozen=True)
class LastBlockReader:
    """Reader of a model's last block, created by `last_block_reader`."""

    tower: VisionTower
    split: Callable[[Tensor, Tensor | None, tuple[int, int]], LastBlock]  # tokens, rotary positions, grid
    embed: TensorMap  # tokens after the block, (..., D) -> features in the joint space, (..., E)

    def read(self, pixels: Tensor) -> LastBlock:
        """Read the last block for normalised images, (B, 3, height, width). See `vision_features` for sizes."""
        # The block's own inputs, whatever the model does to them before.
        caught: list[tuple[Tensor, Tensor | None]] = []

        def catch(block: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
            caught.append((inputs[0], keywords.get("rope")))

        handle = self.tower.blocks[-1].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            grid = read_tokens(self.tower, pixels, -1).grid
        finally:
            handle.remove()
        tokens, rope = caught[0]
        return self.split(tokens, rope, grid)


def last_block_reader(model: ClipModel | nn.Module, resample: Resample = resample_positions) -> LastBlockReader:
    """Create the reader of a model's last block.

    Args:
        model: A CLIP model.
        resample: How learned positions are interpolated for images of another size than the encoder's.

    Raises:
        UserError: If its tower has no patch tokens, no map from a patch to the joint space, or a block of another kind.
    """
    tower = vision_tower(model, resample)
    block: Any = tower.blocks[-1]
    attention = getattr(block, "attn", None)
    if type(block) is ResidualAttentionBlock and tower.visual.transformer.batch_first:  # type: ignore[union-attr]
        split = _open_clip_split(block)
    elif type(attention) is TIMM_PARTS.get(type(block)):
        split = _timm_split(block, attention)
    else:
        kind = f"{type(block).__name__} with {type(attention).__name__}"
        raise UserError(f"{tower.name}: the last block cannot be taken apart: {kind} is not supported")
    return LastBlockReader(tower, split, _patch_embedding(tower, model))


def papers_positions(positions: Tensor, old_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Interpolate positions to another grid (bicubic), with the factor (n + 0.1) / n0 of the papers' code.

    The factor comes from DINO's code, where it kept the size from being rounded down. It also shifts the points at
    which positions are read. Source: the published code of SCLIP, NACLIP and ProxyCLIP.

    Args:
        positions: (1, P + N, D), P prefix tokens first.
        old_grid: Rows and columns of the N positions.
        grid: Wanted rows and columns.
    """
    num_prefix = positions.shape[1] - old_grid[0] * old_grid[1]
    maps = positions[:, num_prefix:].transpose(1, 2).reshape(1, -1, *old_grid)
    factors = ((grid[0] + 0.1) / old_grid[0], (grid[1] + 0.1) / old_grid[1])
    resized = F.interpolate(
        maps, scale_factor=factors, mode="bicubic", align_corners=False, recompute_scale_factor=False
    )
    return torch.cat([positions[:, :num_prefix], resized.flatten(2).transpose(1, 2)], dim=1)


def _open_clip_split(block: ResidualAttentionBlock) -> Callable[[Tensor, Tensor | None, tuple[int, int]], LastBlock]:
    attention = block.attn

    def project(heads: Tensor) -> Tensor:
        out: Tensor = block.ls_1(attention.out_proj(_merge(heads)))
        return out

    def split(tokens: Tensor, rope: Tensor | None, grid: tuple[int, int]) -> LastBlock:
        y = block.ln_1(tokens)
        parts = F.linear(y, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        q = _heads(parts[0], attention.num_heads)
        k = _heads(parts[1], attention.num_heads)
        v = _heads(parts[2], attention.num_heads)
        forward = lambda z: z + block.ls_2(block.mlp(block.ln_2(z)))  # noqa: E731
        return LastBlock(tokens, q, k, v, grid, nn.Identity(), project, forward)

    return split


def _timm_split(block: Any, attention: Any) -> Callable[[Tensor, Tensor | None, tuple[int, int]], LastBlock]:
    def scaled(x: Tensor, layer_scale: str, gamma: str) -> Tensor:
        if hasattr(block, layer_scale):
            return getattr(block, layer_scale)(x)  # type: ignore[no-any-return]
        factor = getattr(block, gamma)
        return x if factor is None else factor * x

    def split(tokens: Tensor, rope: Tensor | None, grid: tuple[int, int]) -> LastBlock:
        y = block.norm1(tokens)
        q, k, v = _timm_projections(attention, y)
        q = attention.q_norm(_heads(q, attention.num_heads))
        k = attention.k_norm(_heads(k, attention.num_heads))
        v = _heads(v, attention.num_heads)
        num_prefix = tokens.shape[1] - grid[0] * grid[1]

        def rotate(heads: Tensor) -> Tensor:
            if rope is None:
                return heads
            half = getattr(attention, "rotate_half", False)
            # Class and register tokens have no place in the image.
            turned = apply_rot_embed_cat(heads[:, :, num_prefix:], rope, half=half)
            return torch.cat([heads[:, :, :num_prefix], turned], dim=2).type_as(heads)

        def project(heads: Tensor) -> Tensor:
            merged = attention.norm(_merge(heads))
            if attention.gate is not None:
                if merged.shape[1] != y.shape[1]:
                    raise UserError("a gated attention cannot be read on another grid than its own")
                merged = merged * attention.gate(y).sigmoid()
            return scaled(attention.proj(merged), "ls1", "gamma_1")

        def feed_forward(z: Tensor) -> Tensor:
            return z + scaled(block.mlp(block.norm2(z)), "ls2", "gamma_2")

        return LastBlock(tokens, q, k, v, grid, rotate, project, feed_forward)

    return split


def _timm_projections(attention: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attention.qkv is None:
        return attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)
    if getattr(attention, "q_bias", None) is None:
        q, k, v = attention.qkv(y).chunk(3, dim=-1)
    else:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        q, k, v = F.linear(y, attention.qkv.weight, bias).chunk(3, dim=-1)
    return q, k, v


def _patch_embedding(tower: VisionTower, model: ClipModel | nn.Module) -> TensorMap:
    """Build the map from a token after the block to the joint space.

    A pooling head with a single query (SigLIP's) is applied to each patch as if it attended to that patch alone.
    """
    if tower.project is not None:
        project = tower.project
        return lambda tokens: project(tower.norm(tokens))
    pool = getattr(tower.visual, "attn_pool", None)
    if not isinstance(pool, AttentionPoolLatent) or pool.pos_embed is not None:
        raise UserError(f"{tower.name}: {tower.why_no_projection}, so patches have no features in the joint space")
    trunk: Any = tower.visual

    def embed(tokens: Tensor) -> Tensor:
        # A patch alone gets all the attention of the pooling query, so its result is its own value.
        values = pool.kv(trunk.norm(tokens)).chunk(2, dim=-1)[1]
        u = pool.proj(values)
        if pool.mlp is not None:
            u = u + pool.mlp(pool.norm(u))
        return tower.embed(trunk.fc_norm(u))

    return embed


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


def _merge(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)
