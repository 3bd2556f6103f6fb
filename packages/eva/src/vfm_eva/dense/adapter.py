"""ViT-Adapter: maps of strides 4 to 32 from a plain vision transformer, by convolutions that run beside its blocks.

Before a group of blocks the patches attend to the convolutions' maps (the injector), after it the maps attend to the
patches (the extractor), both by multi-scale deformable attention.

Source: Chen et al. 2023, ViT-Adapter (arXiv:2205.08534), section 3; layers, norms and the order of operations as in the
code of EVA-01's segmenters, which keep the class token in the blocks.
"""

# B images, N queries, M values, D width, L levels, P points, h and w rows and columns of patches

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.plugin import UserError
from vfm_eva.dense.encoder import DenseEncoder, Tokens
from vfm_eva.dense.position_bias import PositionBias
from vfm_eva.dense.transformers_parts import modeling
from vfm_eva.dense.windows import Grid

PATCH, POINTS, NUM_GROUPS = 16, 4, 4
VALUE_SHARE, HIDDEN_SHARE = 0.5, 0.25  # of D: width of attention's values and of the convolutions between patches


class DeformableAttention(nn.Module):
    """Attention to a few places on maps of several sizes; their offsets and weights are linear in the query.

    Source: Zhu et al. 2021, Deformable DETR (arXiv:2010.04159), section 4.1; the sampling is transformers' function.
    """

    def __init__(self, width: int, num_heads: int, num_levels: int) -> None:
        super().__init__()
        self.shape = (num_heads, num_levels, POINTS)
        places, inner = num_heads * num_levels * POINTS, int(width * VALUE_SHARE)
        self.sampling_offsets = nn.Linear(width, places * 2)
        self.attention_weights = nn.Linear(width, places)
        self.value_proj = nn.Linear(width, inner)
        self.output_proj = nn.Linear(inner, width)
        self._sample = modeling("mask2former").multi_scale_deformable_attention

    def forward(self, queries: Tensor, places: Tensor, values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return the attended values, (B, N, D).

        Args:
            queries: (B, N, D).
            places: column and row of each query, from 0 to 1, (N, 2).
            values: of the L maps one after another, (B, M, D).
            grids: rows and columns of each map.
        """
        heads = self.value_proj(values).unflatten(2, (self.shape[0], -1))
        offsets = self.sampling_offsets(queries).unflatten(2, (*self.shape, 2))
        sizes = torch.tensor([(columns, rows) for rows, columns in grids], device=offsets.device)
        where = places[None, :, None, None, None] + offsets / sizes[:, None]
        weights = self.attention_weights(queries).unflatten(2, (self.shape[0], -1)).softmax(dim=-1)
        return self.output_proj(self._sample(heads, list(grids), where, weights.unflatten(3, self.shape[1:])))  # type: ignore[no-any-return]


class Injector(nn.Module):
    """Adds to the patches their attention to the convolutions' maps."""

    def __init__(self, width: int, num_heads: int, num_levels: int) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = DeformableAttention(width, num_heads, num_levels)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, queries: Tensor, places: Tensor, values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return the patches, (B, N, D); the arguments are those of `DeformableAttention`."""
        attended = self.attn(self.query_norm(queries), places, self.feat_norm(values), grids)
        return queries + self.gamma * attended  # type: ignore[no-any-return]


class Extractor(nn.Module):
    """Adds to the convolutions' maps their attention to the patches, then a depth-wise convolution of each map."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        hidden = int(width * HIDDEN_SHARE)
        self.query_norm, self.feat_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = DeformableAttention(width, num_heads, num_levels=1)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mix = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)

    def forward(self, details: Tensor, grids: Sequence[Grid], patches: Tensor, grid: Grid) -> Tensor:
        """Return the maps one after another, (B, N, D).

        Args:
            details: the maps, (B, N, D).
            grids: their rows and columns.
            patches: (B, M, D).
            grid: their rows and columns.
        """
        places = centres(grids, details)
        details = details + self.attn(self.query_norm(details), places, self.feat_norm(patches), [grid])
        hidden = as_maps(self.fc1(self.ffn_norm(details)), grids)
        mixed: Tensor = self.fc2(F.gelu(as_tokens([self.mix(maps) for maps in hidden])))
        return details + mixed


class SpatialPrior(nn.Module):
    """Convolutions on the image: maps of strides 4, 8, 16 and 32, each brought to the encoder's width."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        sizes = (channels, 2 * channels, 4 * channels, 4 * channels)
        self.stem = nn.Sequential(
            *_convolution(3, channels, stride=2),
            *_convolution(channels, channels, stride=1),
            *_convolution(channels, channels, stride=1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*_convolution(before, after, stride=2)) for before, after in pairwise(sizes)
        )
        self.projections = nn.ModuleList(nn.Conv2d(size, width, kernel_size=1) for size in sizes)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four maps, (B, D, H / stride, W / stride)."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(one) for project, one in zip(self.projections, maps, strict=True)]


class ViTAdapter(nn.Module):
    """Turns the blocks of an encoder into maps of strides 4, 8, 16 and 32.

    Args:
        encoder: a timm encoder with a class token and patches of 16 pixels; it is used, not kept.
        num_heads: of the deformable attention.
        channels: of the first convolutions.
        relative: the blocks have relative positions, which are then for one image size.

    Raises:
        UserError: the encoder is of another kind, or its blocks or its image size do not divide.
    """

    def __init__(self, encoder: DenseEncoder, num_heads: int, channels: int, *, relative: bool) -> None:
        super().__init__()
        _check(encoder, num_heads)
        width, groups = encoder.width, range(NUM_GROUPS)
        self.prior = SpatialPrior(width, channels)
        self.levels = nn.Parameter(torch.zeros(3, width))
        self.injectors = nn.ModuleList(Injector(width, num_heads, num_levels=3) for _ in groups)
        self.extractors = nn.ModuleList(
            nn.ModuleList(Extractor(width, num_heads) for _ in range(1 if group < groups[-1] else 3))
            for group in groups
        )
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        self.bias = PositionBias(encoder.trunk.grid, encoder.trunk.blocks) if relative else None

    def forward(self, encoder: DenseEncoder, images: Tensor) -> list[Tensor]:
        """Return the maps, (B, D, H / stride, W / stride) each, for normalised images whose sides divide by 32."""
        finest, *coarse = self.prior(images)
        grids: list[Grid] = [(maps.shape[2], maps.shape[3]) for maps in coarse]
        details = as_tokens([maps + level[:, None, None] for maps, level in zip(coarse, self.levels, strict=True)])
        visual: Any = encoder.visual
        first = visual.cls_token.expand(len(images), -1, -1)  # which has no position in EVA-01's code
        tokens = encoder.embed(images)
        patches, grid, seen = tokens.values, tokens.grid, []
        size, relative = encoder.depth // NUM_GROUPS, self.bias.of_blocks if self.bias else None
        for group, (inject, extractors) in enumerate(zip(self.injectors, self.extractors, strict=True)):
            patches = inject(patches, centres([grid], patches), details, grids)
            tokens = Tokens(torch.cat([first, patches], dim=1), 1, grid)
            tokens = encoder.run(tokens, range(group * size, (group + 1) * size), relative=relative)
            first, patches = tokens.values[:, :1], tokens.values[:, 1:]
            for extract in extractors.children():
                details = extract(details, grids, patches, grid)
            seen.append(tokens.maps)
        own, *others = as_maps(details, grids)
        found = []
        for maps, of_blocks, norm in zip((finest + self.upsample(own), own, *others), seen, self.norms, strict=True):
            of_blocks = F.interpolate(of_blocks, size=maps.shape[2:], mode="bilinear", align_corners=False)
            found.append(norm(maps + of_blocks))
        return found


def centres(grids: Sequence[Grid], like: Tensor) -> Tensor:
    """Return column and row of the centre of each cell of some maps, from 0 to 1, (N, 2)."""
    found = []
    for rows, columns in grids:
        y, x = (torch.arange(size, device=like.device, dtype=like.dtype) for size in (rows, columns))
        places = torch.meshgrid((y + 0.5) / rows, (x + 0.5) / columns, indexing="ij")
        found.append(torch.stack(places[::-1], dim=-1).flatten(0, 1))
    return torch.cat(found)


def as_tokens(maps: Sequence[Tensor]) -> Tensor:
    """Return the cells of maps (B, D, h, w) one after another, row by row, (B, N, D)."""
    return torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)


def as_maps(tokens: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Return the maps of which `as_tokens` has made tokens."""
    parts = torch.split(tokens.transpose(1, 2), [rows * columns for rows, columns in grids], dim=2)
    return [part.reshape(*part.shape[:2], *grid) for part, grid in zip(parts, grids, strict=True)]


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


def _check(encoder: DenseEncoder, num_heads: int) -> None:
    name, size, sides = encoder.trunk.name, encoder.patch_size, encoder.trunk.grid
    if getattr(encoder.visual, "cls_token", None) is None:
        raise UserError(f"{name}: a ViT-Adapter expects a timm encoder with a class token, as EVA's")
    if size != PATCH or any(side % 2 for side in sides):
        raise UserError(
            f"{name}: a ViT-Adapter expects patches of {PATCH} pixels and images of multiples of {2 * PATCH}, got"
            f" patches of {size} and images of {sides[0] * size} x {sides[1] * size}; set the model's patch_size and"
            " img_size"
        )
    if encoder.depth % NUM_GROUPS:
        raise UserError(f"{name}: a ViT-Adapter expects a multiple of four blocks, got {encoder.depth}")
    if int(encoder.width * VALUE_SHARE) % num_heads:
        raise UserError(f"head.adapter_heads: expected a divisor of {encoder.width * VALUE_SHARE:.0f}, got {num_heads}")
