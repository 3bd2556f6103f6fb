"""Compute the tokens of an image, from the tower, that condition the generator."""

# B batch, N patches, T tokens, D width of the joint space, E width of the tokens

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import ClipModel, feature_width, grid_size, image_tokens, vision_tower
from vfm.plugin import UserError
from vfm_diva.parts.parts import Cls, Embedding, Patches, PooledPatches, RasterPooled


@dataclass(frozen=True)
class ImageFeatures:
    """A tower's features of images.

    They are embeddings before the L2 norm, (B, D), and the condition's tokens, (B, T, E). If tokens are drawn for each
    of N times, the tokens are (B N, T, E), and the rows of an image are adjacent.
    """

    embeds: Tensor
    tokens: Tensor


class ImageCondition(ABC):
    """Computes the tokens that condition the generator, with a tower of the CLIP model's architecture.

    Attributes:
        width: Width E of the tokens.
        num_draws: Random numbers that each choice of tokens needs. 0 if nothing is random.
        draws_per_time: Whether the choice is made for each time of an image.
    """

    width: int
    num_draws: int = 0
    draws_per_time: bool = False

    @abstractmethod
    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Compute the features of normalised images, (B, 3, S, S).

        Args:
            visual: Vision tower.
            pixels: Normalised images, (B, 3, S, S).
            draws: Uniform random numbers, (B, num_draws), or (B, N num_draws) for tokens drawn for each of N times.
        """


class EmbeddingCondition(ImageCondition):
    """The embedding as one token."""

    def __init__(self, config: Embedding, clip: ClipModel) -> None:
        self.width = clip.embed_dim

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Compute the features of images. Nothing is drawn."""
        embeds = encode(visual, pixels)
        return ImageFeatures(embeds, embeds[:, None])


class ClsCondition(ImageCondition):
    """The feature before the projection as one token."""

    def __init__(self, config: Cls, clip: ClipModel) -> None:
        self.projected = config.projected
        self.width = clip.embed_dim if config.projected else vision_tower(clip).width

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Compute the features of images. Nothing is drawn."""
        image = image_tokens(visual, pixels)
        return ImageFeatures(image.embeds, (image.embeds if self.projected else image.feature)[:, None])


class PatchCondition(ImageCondition):
    """The image token and a share of the patch tokens, projected if the model can project patches."""

    def __init__(self, config: Patches, clip: ClipModel) -> None:
        self.width = _patch_width(clip)
        self.config = config
        rows, columns = grid_size(clip)
        number = rows * columns
        if not config.replacement and (config.count or 0) > number:
            raise UserError(
                f"condition.count must be at most the number of patches of {clip.name}, {number}, without replacement; "
                f"got {config.count}"
            )
        self.draws_per_time = config.draw_per_time
        if config.replacement:
            self.num_draws = config.count or 0
        else:
            self.num_draws = number if config.share < 1 or config.count else 0

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Compute the features of images.

        Without replacement, the patches with the largest draws are chosen. With it, each draw is the index of a patch.
        """
        image = image_tokens(visual, pixels)
        patches = image.patches
        whole = image.whole
        if self.num_draws:
            assert draws is not None
            num_choices = draws.shape[1] // self.num_draws  # N, or 1
            chosen = self._choose(draws.reshape(-1, self.num_draws), patches.shape[1])  # (B N, count)
            patches = patches.repeat_interleave(num_choices, dim=0)
            whole = whole.repeat_interleave(num_choices, dim=0)
            patches = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[-1]))  # (B N, count, E)
        return ImageFeatures(image.embeds, torch.cat([whole[:, None], patches], dim=1))

    def _choose(self, draws: Tensor, number: int) -> Tensor:
        """Choose the indices of patches among `number` for each row of draws."""
        config = self.config
        if config.replacement:
            chosen = (draws * number).long().clamp(max=number - 1)
        else:
            chosen = draws.topk(config.count or round(config.share * number), dim=1).indices
        return chosen.sort(dim=1).values if config.in_order else chosen


class PooledPatchCondition(ImageCondition):
    """The image token and the patch tokens averaged over squares."""

    def __init__(self, config: PooledPatches, clip: ClipModel) -> None:
        self.width = _patch_width(clip)
        self.window = config.window

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Compute the features of images. Nothing is drawn."""
        image = image_tokens(visual, pixels)
        pooled = pool_squares(image.patches, grid_size(visual), self.window)
        return ImageFeatures(image.embeds, torch.cat([image.whole[:, None], pooled], dim=1))


class RasterPooledCondition(ImageCondition):
    """The image token and averages of successive patch tokens, as in DIVA's code for SigLIP."""

    def __init__(self, config: RasterPooled, clip: ClipModel) -> None:
        self.width = _patch_width(clip)
        self.window = config.window
        rows, columns = grid_size(clip)
        if config.window > rows * columns:
            raise UserError(
                f"condition.window must be at most the number of patches of {clip.name}, {rows * columns}; "
                f"got {config.window}"
            )

    def __call__(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> ImageFeatures:
        """Compute the features of images. Nothing is drawn."""
        image = image_tokens(visual, pixels)
        pooled = F.avg_pool1d(image.patches.transpose(1, 2), self.window).transpose(1, 2)  # (B, N // window, E)
        return ImageFeatures(image.embeds, torch.cat([image.whole[:, None], pooled], dim=1))


def _patch_width(clip: ClipModel) -> int:
    return feature_width(clip, projected=vision_tower(clip).project is not None)


def pool_squares(patches: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Average patches over squares.

    Args:
        patches: (B, N, E), row by row.
        grid: Rows and columns of the patches.
        window: Side of a square in patches.

    Returns:
        (B, N', E).
    """
    plane = patches.transpose(1, 2).reshape(len(patches), -1, *grid)  # (B, E, rows, columns)
    return F.avg_pool2d(plane, window, ceil_mode=True, count_include_pad=False).flatten(2).transpose(1, 2)


def encode(visual: Any, pixels: Tensor) -> Tensor:
    """Compute the image embedding before the L2 norm, (B, D). CoCa's tower returns its tokens too."""
    features = visual(pixels)
    embeds: Tensor = features[0] if isinstance(features, tuple) else features
    return embeds
