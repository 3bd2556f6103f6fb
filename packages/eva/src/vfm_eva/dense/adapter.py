"""ViT-Adapter: feature maps of strides 4 to 32 from a plain vision transformer with parallel convolutions.

The blocks are divided into four groups. Before each group, the patch tokens attend to the feature maps of the
convolutions (injector). After it, the feature maps attend to the patch tokens (extractor). Both use multi-scale
deformable attention.

Source: Chen et al. 2023, ViT-Adapter (arXiv:2205.08534), section 3. Layers, norms and the order of operations follow
the code of EVA-01's segmenters, which keep the class token in the blocks.
"""

# B images, D width, H and W sides of an image (in `PositionBias`: H heads, N tokens)

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.layers import gen_relative_position_index
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.plugin import UserError
from vfm_eva.dense.deformable import VALUE_SHARE, Extractor, Injector, as_maps, as_tokens, centres
from vfm_eva.dense.encoder import DenseEncoder, Tokens
from vfm_eva.dense.relative import RelativeScores
from vfm_eva.dense.windows import Grid

# As in EVA-01's segmenter.
PATCH = 16
NUM_GROUPS = 4


class SpatialPrior(nn.Module):
    """Convolutions on the image for feature maps of strides 4, 8, 16 and 32, projected to the encoder's width."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        sizes = (channels, 2 * channels, 4 * channels, 4 * channels)
        self.stem = nn.Sequential(
            *_convolution(3, channels, stride=2),
            *_convolution(channels, channels, stride=1),
            *_convolution(channels, channels, stride=1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList()
        for before, after in pairwise(sizes):
            self.stages.append(nn.Sequential(*_convolution(before, after, stride=2)))
        self.projections = nn.ModuleList(nn.Conv2d(size, width, kernel_size=1) for size in sizes)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the four feature maps, (B, D, H / stride, W / stride)."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(features) for project, features in zip(self.projections, maps, strict=True)]


class PositionBias(nn.Module):
    """The relative position bias of all blocks.

    It has a learned number for each block, head and offset between two patches. The number is added to the attention
    scores and starts at zero. EVA-01's larger segmenters have one. Source: Bao et al. 2022, BEiT (arXiv:2106.08254).
    The index is timm's.

    Args:
        grid: Rows and columns of the patches. Images must have this size.
        blocks: Blocks of a timm encoder with a class token.
    """

    index: Tensor

    def __init__(self, grid: Grid, blocks: Sequence[Any]) -> None:
        super().__init__()
        rows, columns = grid
        count = (2 * rows - 1) * (2 * columns - 1) + 3  # three more: from, to and within the class token
        self.tables = nn.ParameterList(torch.zeros(count, block.attn.num_heads) for block in blocks)
        # All blocks share an index: with 40 blocks and 3,137 tokens, separate indices would take 3 GB.
        self.register_buffer("index", gen_relative_position_index(grid, class_token=True), persistent=False)

    @property
    def of_blocks(self) -> list[RelativeScores]:
        """Functions that compute the bias of each block. `DenseEncoder.run` calls them."""
        return [partial(self._of_block, number) for number in range(len(self.tables))]

    def _of_block(self, number: int, block: nn.Module, tokens: Tensor, grid: Grid) -> Tensor:
        """Compute the bias of a block, (1, H, N, N). The arguments after `number` are defined by `RelativeScores`."""
        table: Tensor = self.tables[number]
        return table[self.index].permute(2, 0, 1)[None]


class ViTAdapter(nn.Module):
    """Computes feature maps of strides 4, 8, 16 and 32 from an encoder.

    The encoder is not a submodule.

    Args:
        encoder: A timm encoder with a class token and patches of 16 pixels.
        num_heads: Heads of the deformable attention.
        channels: Channels of the first convolutions.
        relative: Add a relative position bias to the attention of the blocks. Images must then have a fixed size.

    Raises:
        UserError: If the encoder has no class token, other patches, an image side that is no multiple of 32, or a
            number of blocks that is no multiple of four, or its width is not divisible among the heads.
    """

    def __init__(self, encoder: DenseEncoder, num_heads: int, channels: int, *, relative: bool) -> None:
        super().__init__()
        _check(encoder, num_heads)
        width = encoder.width
        groups = range(NUM_GROUPS)
        self.prior = SpatialPrior(width, channels)
        self.levels = nn.Parameter(torch.zeros(3, width))
        self.injectors = nn.ModuleList(Injector(width, num_heads, num_levels=3) for _ in groups)
        self.extractors = nn.ModuleList()
        for group in groups:
            # As in ViT-Adapter's code, which refines the last group's maps twice more.
            num_extractors = 1 if group < groups[-1] else 3
            self.extractors.append(nn.ModuleList(Extractor(width, num_heads) for _ in range(num_extractors)))
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        self.bias = PositionBias(encoder.trunk.grid, encoder.trunk.blocks) if relative else None

    def forward(self, encoder: DenseEncoder, images: Tensor) -> list[Tensor]:
        """Compute the four feature maps, (B, D, H / stride, W / stride).

        Args:
            encoder: The encoder that was given to the constructor.
            images: Normalised images, (B, 3, H, W), with sides that are multiples of 32.
        """
        # The finest map has too many cells to attend from, so it only gets the upsampled result.
        finest, *coarse = self.prior(images)
        grids: list[Grid] = [(maps.shape[2], maps.shape[3]) for maps in coarse]
        details = as_tokens([maps + level[:, None, None] for maps, level in zip(coarse, self.levels, strict=True)])
        details, group_maps = self._run_groups(encoder, images, details, grids)
        stride_8, *others = as_maps(details, grids)
        outputs = []
        pyramid = (finest + self.upsample(stride_8), stride_8, *others)
        for maps, patch_maps, norm in zip(pyramid, group_maps, self.norms, strict=True):
            resized = F.interpolate(patch_maps, size=maps.shape[2:], mode="bilinear", align_corners=False)
            outputs.append(norm(maps + resized))
        return outputs

    def _run_groups(
        self, encoder: DenseEncoder, images: Tensor, details: Tensor, grids: Sequence[Grid]
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all groups of blocks, and return feature maps as tokens and each group's patch tokens as maps."""
        visual: Any = encoder.visual
        class_token = visual.cls_token.expand(len(images), -1, -1)  # without a position, as in EVA-01's code
        embedded = encoder.embed(images)
        patches = embedded.values
        grid = embedded.grid
        group_maps = []
        size = encoder.depth // NUM_GROUPS
        relative = self.bias.of_blocks if self.bias else None
        for group, (inject, extractors) in enumerate(zip(self.injectors, self.extractors, strict=True)):
            patches = inject(patches, centres([grid], patches), details, grids)
            tokens = Tokens(torch.cat([class_token, patches], dim=1), 1, grid)
            tokens = encoder.run(tokens, range(group * size, (group + 1) * size), relative=relative)
            class_token = tokens.values[:, :1]
            patches = tokens.values[:, 1:]
            for extract in extractors.children():
                details = extract(details, grids, patches, grid)
            group_maps.append(tokens.maps)
        return details, group_maps


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


def _check(encoder: DenseEncoder, num_heads: int) -> None:
    name = encoder.trunk.name
    size = encoder.patch_size
    sides = encoder.trunk.grid
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
