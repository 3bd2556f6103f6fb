"""Features of images and their patches from any vision transformer, as used by EVA, DIVA and the evaluations.

EVA's teacher target and DIVA's condition are the same computation: the tokens of a block, after the final norm and,
if the model has one, the projection into the joint space.

Sources: EVA (arXiv:2211.07636), section 2.1, for the target. DIVA (arXiv:2407.20171), section 3.2, for the condition.
"""

# B batch, N patches, D width of the tower, E width of the joint space

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.vision.vision_towers import BlockTokens, TensorMap, VisionTower, read_layers, read_tokens, vision_tower


def vision_features(
    model: ClipModel | nn.Module,
    images: Tensor,
    *,
    layers: Sequence[int] = (-1,),
    size: tuple[int, int] | None = None,
    norm: bool = True,
) -> list[BlockTokens]:
    """Compute the tokens of an encoder's blocks for images of any size, in one forward pass, with gradients.

    It supports any vision transformer of timm or open_clip, with learned, rotary or no positions, with or without class
    and register tokens. The dense probe, open-vocabulary segmentation and models of other packages use it.

    Args:
        model: A CLIP model or a timm encoder, in evaluation mode if it has patch dropout.
        images: Normalised images, (B, 3, H, W). H and W may differ from each other and from the encoder's size. If
            they do, they must be multiples of the patch size, and positions are resampled.
        layers: Indices of the blocks. Negative indices count from the end.
        size: Rows and columns, in pixels, to which the images are resized first (bicubic). Default: no resizing.
        norm: Apply the final norm to the tokens of every layer.

    Returns:
        The tokens of each layer, in the order of `layers`. `BlockTokens.maps` are (B, D, rows, columns).

    Raises:
        UserError: If the model has no patch tokens or no such layer, or cannot take images of this size.
    """
    tower = vision_tower(model)
    if size is not None and size != tuple(images.shape[-2:]):
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
    tokens = read_layers(tower, images, layers)
    if not norm:
        return tokens
    return [replace(part, prefix=tower.norm(part.prefix), patches=tower.norm(part.patches)) for part in tokens]


def patch_features(
    model: ClipModel | nn.Module, pixels: Tensor, *, layer: int = -1, projected: bool = True, normalize: bool = False
) -> Tensor:
    """Compute the feature of each patch, in the model's joint space or before the projection, with gradients.

    Args:
        model: A CLIP model or a timm encoder, in evaluation mode if it has patch dropout.
        pixels: Normalised images, (B, 3, H, W).
        layer: Index of the block to read. Negative indices count from the end.
        projected: Apply the final norm and the projection, or only the final norm.
        normalize: Scale each feature to unit length.

    Returns:
        (B, N, E), or (B, N, D) without the projection, with the patches row by row.

    Raises:
        UserError: If the model has no patch tokens, no such layer, or no projection of patches.
    """
    tower = vision_tower(model)
    project = _projection(tower, projected)
    features = project(tower.norm(read_tokens(tower, pixels, layer).patches))
    if not normalize:
        return features
    return F.normalize(features, dim=-1)


def cls_and_patch_tokens(
    model: ClipModel | nn.Module, pixels: Tensor, *, layer: int = -1, projected: bool = True
) -> tuple[Tensor, Tensor]:
    """Compute the features of the image and of its patches in one forward pass, with gradients.

    The image feature is the model's own: `encode_image` before the L2 norm if `projected`. It is the class token in a
    model that pools by it, otherwise the pooled feature. It belongs to the last block, and the patches to `layer`.

    Returns:
        (B, E) and (B, N, E), or (B, D) and (B, N, D) without the projection.

    Raises:
        UserError: See `patch_features`.
    """
    tower = vision_tower(model)
    project = _projection(tower, projected)
    inner, last = read_layers(tower, pixels, [layer, -1])
    return project(tower.pool(last)), project(tower.norm(inner.patches))


@dataclass(frozen=True)
class ImageTokens:
    """Features of a batch of images and of their patches."""

    embeds: Tensor  # (B, E), in the joint space: `encode_image` before the L2 norm
    feature: Tensor  # (B, D), before the projection
    patches: Tensor  # (B, N, E) if the model can project patches, else (B, N, D) after the final norm
    are_projected: bool

    @property
    def whole(self) -> Tensor:
        """The image's own token, of the same width as a patch.

        It is `embeds`, or `feature` if patches are not projected.
        """
        if self.are_projected:
            return self.embeds
        return self.feature


def image_tokens(model: ClipModel | nn.Module, pixels: Tensor) -> ImageTokens:
    """Compute the tokens of the images and of their patches in one forward pass, with gradients.

    Args:
        model: As in `patch_features`.
        pixels: Normalised images, (B, 3, H, W).

    Raises:
        UserError: If the model has no patch tokens, or its pooling head gives no feature of the patches' width.
    """
    tower = vision_tower(model)
    tokens = read_tokens(tower, pixels, -1)
    feature = tower.pool(tokens)
    patches = tower.norm(tokens.patches)
    if tower.project is not None:
        patches = tower.project(patches)
    return ImageTokens(tower.embed(feature), feature, patches, tower.project is not None)


def grid_size(model: ClipModel | nn.Module) -> tuple[int, int]:
    """Count the rows and columns of patches at the model's own image size."""
    return vision_tower(model).grid


def feature_width(model: ClipModel | nn.Module, *, projected: bool = True) -> int:
    """Compute the width of `patch_features`.

    Args:
        model: CLIP model or timm encoder.
        projected: Whether the features are projected into the joint space.

    Raises:
        UserError: If `projected`, and the model has no projection of patches.
    """
    tower = vision_tower(model)
    weight = next(tower.visual.parameters())
    return int(_projection(tower, projected)(weight.new_zeros(1, tower.width)).shape[-1])


def _projection(tower: VisionTower, projected: bool) -> TensorMap:
    if not projected:
        return nn.Identity()
    if tower.project is None:
        raise UserError(
            f"{tower.name}: {tower.why_no_projection}, so there are no projected patches; set projected: false"
        )
    return tower.project
