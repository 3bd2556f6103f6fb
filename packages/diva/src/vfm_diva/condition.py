"""The conditions of `diva.tune`: which of the tower's tokens of an image condition the generator."""

# B batch, N patches, T tokens, D width of the joint space, E width of the tokens

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import ClipModel, feature_width, grid_size, image_tokens, vision_tower
from vfm_diva.parts import Cls, Embedding, Patches, PooledPatches


@dataclass(frozen=True)
class ImageFeatures:
    """A tower's features of images: embeddings before the L2 norm, (B, D), and the condition's tokens, (B, T, E)."""

    embeds: Tensor
    tokens: Tensor


class ImageCondition(ABC):
    """Computes the tokens that condition the generator, with a tower of the CLIP model's architecture.

    width: E.
    num_draws: random numbers per image that the choice of tokens needs; 0 if nothing is random.
    """

    width: int
    num_draws: int = 0

    @abstractmethod
    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Return the features of normalised images, (B, 3, S, S).

        Args:
            visual: the tower.
            pixels: (B, 3, S, S).
            draws: uniform random numbers, (B, num_draws).
        """


class EmbeddingCondition(ImageCondition):
    """The embedding as one token."""

    def __init__(self, config: Embedding, clip: ClipModel) -> None:
        self.width = clip.embed_dim

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Return the features of images; nothing is drawn."""
        embeds = encode(visual, pixels)
        return ImageFeatures(embeds, embeds[:, None])


class ClsCondition(ImageCondition):
    """The feature before the projection as one token."""

    def __init__(self, config: Cls, clip: ClipModel) -> None:
        self.width = vision_tower(clip).width

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Return the features of images; nothing is drawn."""
        image = image_tokens(visual, pixels)
        return ImageFeatures(image.embeds, image.feature[:, None])


class PatchCondition(ImageCondition):
    """The image token and a share of the patch tokens, projected if the model can project patches."""

    def __init__(self, config: Patches, clip: ClipModel) -> None:
        self.width, self.share = _patch_width(clip), config.share
        rows, columns = grid_size(clip)
        self.num_draws = rows * columns if config.share < 1 else 0

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Return the features of images; the patches with the largest draws are chosen."""
        image = image_tokens(visual, pixels)
        patches = image.patches
        count = round(self.share * patches.shape[1])
        if count < patches.shape[1]:
            assert draws is not None
            chosen = draws.topk(count, dim=1).indices.sort(dim=1).values
            patches = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[-1]))  # (B, count, E)
        return ImageFeatures(image.embeds, torch.cat([image.whole[:, None], patches], dim=1))


class PooledPatchCondition(ImageCondition):
    """The image token and the patch tokens averaged over squares."""

    def __init__(self, config: PooledPatches, clip: ClipModel) -> None:
        self.width, self.window = _patch_width(clip), config.window

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Return the features of images; nothing is drawn."""
        image = image_tokens(visual, pixels)
        pooled = pool_squares(image.patches, grid_size(visual), self.window)
        return ImageFeatures(image.embeds, torch.cat([image.whole[:, None], pooled], dim=1))


def _patch_width(clip: ClipModel) -> int:
    return feature_width(clip, projected=vision_tower(clip).project is not None)


def pool_squares(patches: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Average patches, (B, N, E) row by row, over squares of `window` x `window`, (B, N', E)."""
    plane = patches.transpose(1, 2).reshape(len(patches), -1, *grid)  # (B, E, rows, columns)
    return F.avg_pool2d(plane, window, ceil_mode=True, count_include_pad=False).flatten(2).transpose(1, 2)


def encode(visual: Any, pixels: Tensor) -> Tensor:
    """Return the image embedding before the L2 norm, (B, D). CoCa's tower returns its tokens too."""
    features = visual(pixels)
    embeds: Tensor = features[0] if isinstance(features, tuple) else features
    return embeds
