"""Patch features of any vision transformer: open_clip's own, timm's, and timm's inside a CLIP model.

EVA's teacher target and DIVA's condition are the same thing: the tokens of a block, through the final norm and, where
the model has one, the projection into the joint space. Only public seams are used (`forward_intermediates`).

Sources: EVA (arXiv:2211.07636), section 2.1, for the target; DIVA (arXiv:2407.20171), section 3.2, for the condition.
"""

# B batch, N patches, D width

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as OpenClipViT
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.config import UserError
from vfm.models.clip import ClipModel

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one block as the block left them."""

    prefix: Tensor  # (B, P, D), class and register tokens
    patches: Tensor  # (B, N, D)


@dataclass(frozen=True)
class Tower:
    """One way to look at all vision transformers: `vision_tower` makes it."""

    visual: nn.Module
    name: str
    blocks: Sequence[nn.Module]
    width: int
    patch_size: tuple[int, int]
    image_size: tuple[int, int]
    read: Callable[[Tensor, int], Tokens]  # pixels and a block's index
    norm: Map  # the final norm, as each token would meet it on its way to the projection
    pool: Callable[[Tokens], Tensor]  # (B, D) image feature before the projection, of the last block's tokens
    embed: Map  # the image feature's way into the joint space
    project: Map | None  # the patches' way, D -> joint width
    why_no_projection: str = ""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the model's own image size."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]


def patch_features(
    model: ClipModel | nn.Module, pixels: Tensor, *, layer: int = -1, projected: bool = True, normalize: bool = False
) -> Tensor:
    """What each patch of an image says, in the model's joint space (or before it).

    Args:
        model: a CLIP model or a timm encoder, in evaluation mode if its patch dropout is on. Gradients flow unless the
            caller stops them.
        pixels: normalised images, (B, 3, H, W).
        layer: block whose tokens are taken, from 0; negative counts from the end.
        projected: apply the projection after the final norm, else the final norm alone.
        normalize: scale each feature to unit length.

    Returns:
        (B, N, D), patches row by row.

    Raises:
        UserError: the model has no patch tokens, no such layer, or no projection of patches.
    """
    tower = vision_tower(model)
    project = _projection(tower, projected)
    features = project(tower.norm(read_tokens(tower, pixels, layer).patches))
    return F.normalize(features, dim=-1) if normalize else features


def cls_and_patch_tokens(
    model: ClipModel | nn.Module, pixels: Tensor, *, projected: bool = True
) -> tuple[Tensor, Tensor]:
    """The image's feature and its patches' from one forward pass, with gradients.

    The first is what the model itself makes of the image: `encode_image` before the L2 norm where `projected`. That is
    the class token for a model that pools by it, else the pooled feature.

    Returns:
        (B, D) and (B, N, D).

    Raises:
        UserError: as `patch_features`.
    """
    tower = vision_tower(model)
    project = _projection(tower, projected)
    tokens = read_tokens(tower, pixels, -1)
    return project(tower.pool(tokens)), project(tower.norm(tokens.patches))


def grid_size(model: ClipModel | nn.Module) -> tuple[int, int]:
    """Rows and columns of patches at the model's own image size."""
    return vision_tower(model).grid


def feature_width(model: ClipModel | nn.Module, *, projected: bool = True) -> int:
    """Width of `patch_features`.

    Raises:
        UserError: `projected`, and the model has no projection of patches.
    """
    tower = vision_tower(model)
    weight = next(tower.visual.parameters())
    return int(_projection(tower, projected)(weight.new_zeros(1, tower.width)).shape[-1])


def vision_tower(model: ClipModel | nn.Module) -> Tower:
    """The one view of a CLIP model's or timm encoder's vision transformer.

    Raises:
        UserError: it is not a transformer over patches.
    """
    name = model.name if isinstance(model, ClipModel) else type(model).__name__
    module = model.module if isinstance(model, ClipModel) else model
    visual = getattr(module, "visual", module)
    if isinstance(visual, OpenClipViT):
        return _open_clip_tower(visual, name)
    trunk, head = (visual.trunk, visual.head) if isinstance(visual, TimmModel) else (visual, nn.Identity())
    if not all(hasattr(trunk, part) for part in ("forward_intermediates", "blocks", "patch_embed", "fc_norm")):
        raise UserError(f"{name}: {type(trunk).__name__} has no patch tokens; a vision transformer is wanted")
    return _timm_tower(trunk, head, name)


def _open_clip_tower(visual: OpenClipViT, name: str) -> Tower:
    if visual.attn_pool is not None:
        norm: Map = nn.Identity()
        why = "its pooling head projects the image, not the patches"
    else:
        norm, why = visual.ln_post, "its projection was taken off"

    def read(pixels: Tensor, layer: int) -> Tokens:
        out = visual.forward_intermediates(
            pixels, indices=[layer], intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        return Tokens(out["image_intermediates_prefix"][0], out["image_intermediates"][0])

    def pool(tokens: Tokens) -> Tensor:
        if visual.pool_type == "tok":
            return norm(tokens.prefix[:, 0])
        if visual.pool_type != "avg" or visual.attn_pool is not None:
            raise UserError(f"{name}: its pooling head gives no image feature of the patches' width")
        if visual.final_ln_after_pool:
            return norm(tokens.patches.mean(dim=1))
        return norm(tokens.patches).mean(dim=1)

    projection = visual.proj
    embed: Map = nn.Identity() if projection is None else lambda x: x @ projection
    return Tower(
        visual,
        name,
        blocks=visual.transformer.resblocks,
        width=visual.conv1.out_channels,
        patch_size=visual.patch_size,
        image_size=visual.image_size,
        read=read,
        norm=norm,
        pool=pool,
        embed=embed,
        project=None if visual.attn_pool is not None or projection is None else embed,
        why_no_projection=why,
    )


def _timm_tower(trunk: Any, head: nn.Module, name: str) -> Tower:
    parts = [part for part in (trunk.head, *head.children()) if not isinstance(part, nn.Identity | nn.Dropout)]
    embed, why, pools_outside = nn.Sequential(*parts), "it has no projection", "pool" in dict(head.named_children())
    if getattr(trunk, "attn_pool", None) is not None or pools_outside:
        parts, why = [], "its pooling head projects the image, not the patches"

    def read(pixels: Tensor, layer: int) -> Tokens:
        has_prefix = trunk.num_prefix_tokens > 0  # timm cannot return none
        (out,) = trunk.forward_intermediates(
            pixels, indices=[layer], intermediates_only=True, output_fmt="NLC", return_prefix_tokens=has_prefix
        )
        patches, prefix = out if has_prefix else (out, out[:, :0])
        return Tokens(prefix, patches)

    def pool(tokens: Tokens) -> Tensor:
        if pools_outside:
            raise UserError(f"{name}: its pooling head gives no image feature of the patches' width")
        whole = trunk.norm(torch.cat([tokens.prefix, tokens.patches], dim=1))
        pooled: Tensor = trunk.forward_head(whole, pre_logits=True)
        return pooled

    return Tower(
        trunk,
        name,
        blocks=trunk.blocks,
        width=trunk.num_features,
        patch_size=trunk.patch_embed.patch_size,
        image_size=trunk.patch_embed.img_size,
        read=read,
        norm=nn.Sequential(trunk.norm, trunk.fc_norm),
        pool=pool,
        embed=embed,
        project=embed if parts else None,
        why_no_projection=why,
    )


def read_tokens(tower: Tower, pixels: Tensor, layer: int) -> Tokens:
    """The tokens of a block, the last by -1; patches that were dropped are an error."""
    index = layer + tower.depth if layer < 0 else layer
    if not 0 <= index < tower.depth:
        raise UserError(f"{tower.name}: layer {layer} is not one of its {tower.depth} blocks")
    tokens = tower.read(pixels, index)
    num_patches = (pixels.shape[2] // tower.patch_size[0]) * (pixels.shape[3] // tower.patch_size[1])
    if tokens.patches.shape[1] != num_patches:  # patch dropout: what is left cannot be told apart
        raise ValueError(
            f"{tower.name}: {tokens.patches.shape[1]} of {num_patches} patches came back; call eval() first"
        )
    return tokens


def _projection(tower: Tower, projected: bool) -> Map:
    if not projected:
        return nn.Identity()
    if tower.project is None:
        raise UserError(
            f"{tower.name}: {tower.why_no_projection}, so there are no projected patches; set projected: false"
        )
    return tower.project
