"""Attention between the patch tokens of an encoder and feature maps of several strides, for `ViTAdapter`."""

# B images, N queries, M values, D width, L levels (feature maps)

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm_eva.dense.transformers_parts import modeling
from vfm_eva.dense.windows import Grid

# As in EVA-01's segmenter.
POINTS = 4
VALUE_SHARE = 0.5  # width of the attention's values as a fraction of D
HIDDEN_SHARE = 0.25  # width of the feed-forward convolutions as a fraction of D


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: each query attends to a few points around its location in each feature map.

    Offsets and weights of the points are linear in the query. Source: Zhu et al. 2021, Deformable DETR
    (arXiv:2010.04159), section 4.1. The sampling function comes from transformers.

    Args:
        width: Width of queries and values, D.
        num_heads: Number of heads. Each head attends to different points.
        num_levels: Number of feature maps, L.
    """

    def __init__(self, width: int, num_heads: int, num_levels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        num_points = num_heads * num_levels * POINTS
        inner = int(width * VALUE_SHARE)
        self.sampling_offsets = nn.Linear(width, num_points * 2)
        self.attention_weights = nn.Linear(width, num_points)
        self.value_proj = nn.Linear(width, inner)
        self.output_proj = nn.Linear(inner, width)
        self._sample = modeling("mask2former").multi_scale_deformable_attention

    def forward(self, queries: Tensor, locations: Tensor, values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Compute the attended values, (B, N, D).

        Args:
            queries: (B, N, D).
            locations: x and y of each query as fractions of the sides, (N, 2).
            values: The L feature maps as tokens, one map after another, (B, M, D).
            grids: Rows and columns of each feature map.
        """
        per_level = (self.num_levels, POINTS)
        offsets = self.sampling_offsets(queries).unflatten(2, (self.num_heads, *per_level, 2))  # in cells of a map
        sizes = torch.tensor([(columns, rows) for rows, columns in grids], device=offsets.device)
        points = locations[None, :, None, None, None] + offsets / sizes[:, None]  # (B, N, heads, L, POINTS, 2)
        weights = self.attention_weights(queries).unflatten(2, (self.num_heads, -1)).softmax(dim=-1)
        heads = self.value_proj(values).unflatten(2, (self.num_heads, -1))  # (B, M, heads, channels of a head)
        sampled = self._sample(heads, list(grids), points, weights.unflatten(3, per_level))
        attended: Tensor = self.output_proj(sampled)
        return attended


class Injector(nn.Module):
    """Patch tokens attend to the feature maps. The result is added, scaled by a learned vector that starts at zero."""

    def __init__(self, width: int, num_heads: int, num_levels: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.feat_norm = nn.LayerNorm(width, eps=1e-6)
        self.attn = DeformableAttention(width, num_heads, num_levels)
        # Zero at first, so that training starts from the encoder's own features.
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, queries: Tensor, locations: Tensor, values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Update the patch tokens.

        Args:
            queries: Patch tokens, (B, N, D).
            locations: As in `DeformableAttention.forward`.
            values: As in `DeformableAttention.forward`.
            grids: As in `DeformableAttention.forward`.

        Returns:
            (B, N, D).
        """
        attended = self.attn(self.query_norm(queries), locations, self.feat_norm(values), grids)
        return queries + self.gamma * attended  # type: ignore[no-any-return]


class Extractor(nn.Module):
    """Feature maps attend to the patch tokens, followed by a feed-forward layer with a 3 x 3 convolution."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        hidden = int(width * HIDDEN_SHARE)
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.feat_norm = nn.LayerNorm(width, eps=1e-6)
        self.attn = DeformableAttention(width, num_heads, num_levels=1)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.mix = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)

    def forward(self, details: Tensor, grids: Sequence[Grid], patches: Tensor, grid: Grid) -> Tensor:
        """Update the feature maps, as tokens, one map after another, (B, N, D).

        Args:
            details: The feature maps as tokens, (B, N, D).
            grids: Rows and columns of each feature map.
            patches: Patch tokens, (B, M, D).
            grid: Rows and columns of the patches.
        """
        locations = centres(grids, details)
        details = details + self.attn(self.query_norm(details), locations, self.feat_norm(patches), [grid])
        hidden = as_maps(self.fc1(self.ffn_norm(details)), grids)
        mixed: Tensor = self.fc2(F.gelu(as_tokens([self.mix(maps) for maps in hidden])))
        return details + mixed


def centres(grids: Sequence[Grid], like: Tensor) -> Tensor:
    """Compute x and y of the centre of each map cell, as fractions of the sides, (N, 2)."""
    points = []
    for rows, columns in grids:
        y = torch.arange(rows, device=like.device, dtype=like.dtype)
        x = torch.arange(columns, device=like.device, dtype=like.dtype)
        y_x = torch.meshgrid((y + 0.5) / rows, (x + 0.5) / columns, indexing="ij")
        points.append(torch.stack(y_x[::-1], dim=-1).flatten(0, 1))
    return torch.cat(points)


def as_tokens(maps: Sequence[Tensor]) -> Tensor:
    """Flatten maps (B, D, rows, columns) to tokens, map by map and row by row, (B, N, D)."""
    return torch.cat([features.flatten(2).transpose(1, 2) for features in maps], dim=1)


def as_maps(tokens: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Split tokens into maps (B, D, rows, columns). This inverts `as_tokens`."""
    parts = torch.split(tokens.transpose(1, 2), [rows * columns for rows, columns in grids], dim=2)
    return [part.reshape(*part.shape[:2], *grid) for part, grid in zip(parts, grids, strict=True)]
