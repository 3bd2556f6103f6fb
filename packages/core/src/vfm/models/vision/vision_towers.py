"""A common interface to the vision transformers of open_clip, of timm, and of timm inside a CLIP model.

Only public methods of the two libraries are used (`forward_intermediates`, `forward_head`).
"""

# B batch, P prefix tokens (class and register tokens), N patches, D width of the tower, E width of the joint space

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as OpenClipViT
from torch import Tensor, nn

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.vision.vision_sizes import Resample, intermediates_at_size, patch_stride, resample_positions

TensorMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockTokens:
    """Tokens of a batch of images after a block."""

    prefix: Tensor  # (B, P, D): the class token if the encoder has one, then its other tokens, such as registers
    patches: Tensor  # (B, N, D), row by row
    grid: tuple[int, int]  # rows and columns of the patches: N = rows * columns

    @property
    def maps(self) -> Tensor:
        """The patches as feature maps, (B, D, rows, columns)."""
        return self.patches.transpose(1, 2).reshape(len(self.patches), -1, *self.grid)


@dataclass(frozen=True)
class VisionTower:
    """A vision transformer behind a common interface, created by `vision_tower`."""

    visual: nn.Module
    name: str
    blocks: Sequence[nn.Module]
    width: int
    patch_size: tuple[int, int]  # pixels from a patch to the next, including any stem before the patches
    image_size: tuple[int, int]
    has_class_token: bool
    read: Callable[[Tensor, list[int]], list[tuple[Tensor, Tensor]]]  # prefix and patches after blocks, by index
    norm: TensorMap  # the final norm, as applied to a token before the projection
    pool: Callable[[BlockTokens], Tensor]  # last block's tokens -> image feature before the projection, (B, D)
    embed: TensorMap  # image feature, (B, D) -> embedding in the joint space, (B, E)
    project: TensorMap | None  # patch features, (B, N, D) -> (B, N, E)
    why_no_projection: str = ""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def block_index(self, layer: int) -> int:
        """Convert the index of a block to count from 0. A negative index counts from the end.

        Raises:
            UserError: If the block does not exist.
        """
        index = layer + self.depth if layer < 0 else layer
        if not 0 <= index < self.depth:
            raise UserError(f"{self.name}: layer {layer} is not one of its {self.depth} blocks")
        return index

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the model's own image size."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]


def vision_tower(model: ClipModel | nn.Module, resample: Resample = resample_positions) -> VisionTower:
    """Wrap the vision transformer of a CLIP model or a timm encoder as a `VisionTower`.

    Args:
        model: A CLIP model or a timm encoder.
        resample: How learned positions are interpolated for images of another size than the encoder's.

    Raises:
        UserError: If the model is not a transformer over patches.
    """
    if isinstance(model, ClipModel):
        name = model.name
        module = model.module
    else:
        name = type(model).__name__
        module = model
    visual = getattr(module, "visual", module)
    if isinstance(visual, OpenClipViT):
        return _open_clip_tower(visual, name, resample)
    trunk: Any = visual
    head: nn.Module = nn.Identity()
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        head = visual.head
    if not all(hasattr(trunk, part) for part in ("forward_intermediates", "blocks", "patch_embed", "fc_norm")):
        raise UserError(f"{name}: {type(trunk).__name__} has no patch tokens; expected a vision transformer")
    return _timm_tower(trunk, head, name, resample)


def read_tokens(tower: VisionTower, pixels: Tensor, layer: int) -> BlockTokens:
    """Compute the tokens after a block, as `read_layers` does.

    Args:
        tower: The vision tower.
        pixels: Normalised images, (B, 3, S, S).
        layer: Number of the block.
    """
    return read_layers(tower, pixels, [layer])[0]


def read_layers(tower: VisionTower, pixels: Tensor, layers: Sequence[int]) -> list[BlockTokens]:
    """Compute the tokens after several blocks in one forward pass, in the order of `layers`.

    Args:
        tower: The encoder.
        pixels: (B, 3, H, W). At another size than the encoder's, positions are resampled (`intermediates_at_size`).
        layers: Indices of blocks. Negative indices count from the end.

    Raises:
        UserError: If a block does not exist, or the encoder cannot take images of this size.
        ValueError: If patch dropout removed patches, so the positions of the others are unknown.
    """
    indices = list(map(tower.block_index, layers))
    read = sorted(set(indices))
    grid = (pixels.shape[2] // tower.patch_size[0], pixels.shape[3] // tower.patch_size[1])
    tokens: dict[int, BlockTokens] = {}
    for index, (prefix, patches) in zip(read, tower.read(pixels, read), strict=True):
        if patches.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{tower.name}: expected {grid[0] * grid[1]} patches, got {patches.shape[1]}; call eval() first"
            )
        tokens[index] = BlockTokens(prefix, patches, grid)
    return [tokens[index] for index in indices]


def _open_clip_tower(visual: OpenClipViT, name: str, resample: Resample) -> VisionTower:
    if visual.attn_pool is not None:
        norm: TensorMap = nn.Identity()
        why = "its pooling head projects the image, not the patches"
    else:
        norm = visual.ln_post
        why = "its projection was removed"

    def read(pixels: Tensor, layers: list[int]) -> list[tuple[Tensor, Tensor]]:
        out = intermediates_at_size(
            visual,
            pixels,
            resample=resample,
            indices=layers,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return list(zip(out["image_intermediates_prefix"], out["image_intermediates"], strict=True))

    def pool(tokens: BlockTokens) -> Tensor:
        if visual.pool_type == "tok":
            return norm(tokens.prefix[:, 0])
        if visual.pool_type != "avg" or visual.attn_pool is not None:
            raise UserError(f"{name}: its pooling head gives no image feature of the patches' width")
        if visual.final_ln_after_pool:
            return norm(tokens.patches.mean(dim=1))
        return norm(tokens.patches).mean(dim=1)

    projection = visual.proj
    embed: TensorMap = nn.Identity()
    if projection is not None:
        embed = lambda x: x @ projection  # noqa: E731
    projects_patches = visual.attn_pool is None and projection is not None
    return VisionTower(
        visual,
        name,
        blocks=visual.transformer.resblocks,
        width=visual.conv1.out_channels,
        patch_size=visual.patch_size,
        image_size=visual.image_size,
        has_class_token=True,
        read=read,
        norm=norm,
        pool=pool,
        embed=embed,
        project=embed if projects_patches else None,
        why_no_projection=why,
    )


def _timm_tower(trunk: Any, head: nn.Module, name: str, resample: Resample) -> VisionTower:
    parts = [part for part in (trunk.head, *head.children()) if not isinstance(part, nn.Identity | nn.Dropout)]
    embed = nn.Sequential(*parts)
    why = "it has no projection"
    pools_outside = "pool" in dict(head.named_children())
    if getattr(trunk, "attn_pool", None) is not None or pools_outside:
        parts = []
        why = "its pooling head projects the image, not the patches"

    def read(pixels: Tensor, layers: list[int]) -> list[tuple[Tensor, Tensor]]:
        has_prefix = trunk.num_prefix_tokens > 0  # timm fails to return prefix tokens if there are none
        out = intermediates_at_size(
            trunk,
            pixels,
            resample=resample,
            indices=layers,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            return_prefix_tokens=has_prefix,
        )
        if has_prefix:
            return [(prefix, patches) for patches, prefix in out]
        return [(patches[:, :0], patches) for patches in out]

    def pool(tokens: BlockTokens) -> Tensor:
        if pools_outside:
            raise UserError(f"{name}: its pooling head gives no image feature of the patches' width")
        whole = trunk.norm(torch.cat([tokens.prefix, tokens.patches], dim=1))  # (B, P + N, D)
        pooled: Tensor = trunk.forward_head(whole, pre_logits=True)
        return pooled

    return VisionTower(
        trunk,
        name,
        blocks=trunk.blocks,
        width=trunk.num_features,
        patch_size=patch_stride(trunk.patch_embed),
        image_size=trunk.patch_embed.img_size,
        has_class_token=getattr(trunk, "cls_token", None) is not None,
        read=read,
        norm=nn.Sequential(trunk.norm, trunk.fc_norm),  # one of the two is an identity
        pool=pool,
        embed=embed,
        project=embed if parts else None,
        why_no_projection=why,
    )
