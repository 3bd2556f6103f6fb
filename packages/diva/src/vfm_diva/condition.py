"""What of an image the generator is told: which of the tower's tokens."""

# B batch, N patches, T tokens, D width of the joint space, E width of the tokens

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vfm.config import Config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vfm.models.clip import ClipModel


@dataclass(frozen=True)
class Seen:
    """What the tower makes of images: their embeddings before the L2 norm, (B, D), and what is told, (B, T, E)."""

    embeds: Tensor
    tokens: Tensor


class _Condition(Config):
    def num_draws(self, clip: ClipModel) -> int:
        """Random numbers that an image's tokens hang on; 0 where none are drawn."""
        return 0


class Embedding(_Condition):
    """The image's embedding in the joint space as one token; any CLIP model has it (un2CLIP)."""

    type: Literal["embedding"] = Field("embedding", description="the image's embedding in the joint space (un2CLIP)")

    def width(self, clip: ClipModel) -> int:
        """E; looks at no weights."""
        return clip.embed_dim

    def see(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> Seen:
        """The tower's tokens of normalised images, (B, 3, S, S)."""
        embeds = embed(visual, pixels)
        return Seen(embeds, embeds[:, None])


class Cls(_Condition):
    """The image's feature before the projection: the class token, or what the model pools instead (GenHancer)."""

    type: Literal["cls"] = Field("cls", description="the class token, or the pooled feature, before the projection")

    def width(self, clip: ClipModel) -> int:
        """E; looks at no weights."""
        from vfm.models.patch_features import vision_tower

        return vision_tower(clip).width

    def see(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> Seen:
        """The tower's tokens of normalised images, (B, 3, S, S)."""
        from vfm.models.image_tokens import image_tokens

        image = image_tokens(visual, pixels)
        return Seen(image.embeds, image.feature[:, None])


class _WithPatches(_Condition):
    """The image's own token and its patches', through the projection where the model has one for patches (DIVA)."""

    def width(self, clip: ClipModel) -> int:
        """E; looks at no weights."""
        from vfm.models.patch_features import feature_width, vision_tower

        return feature_width(clip, projected=vision_tower(clip).project is not None)


class Patches(_WithPatches):
    """The image's token and a share of its patches', drawn anew for each image and step, none twice (DIVA)."""

    type: Literal["patches"] = Field("patches", description="the image's token and a share of its patches' (DIVA)")
    share: float = Field(
        1.0, ge=0, le=1, description="of the patches; drawn from the sample's seed without replacement, then in order"
    )

    def num_draws(self, clip: ClipModel) -> int:
        """N where a share of the patches is drawn."""
        from vfm.models.patch_features import grid_size

        rows, columns = grid_size(clip)
        return rows * columns if self.share < 1 else 0

    def see(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> Seen:
        """The tower's tokens of normalised images, (B, 3, S, S).

        Args:
            draws: a random number of each patch, (B, N): those with the largest are told; needed by a share below 1.
        """
        import torch

        from vfm.models.image_tokens import image_tokens

        image = image_tokens(visual, pixels)
        patches = image.patches
        count = round(self.share * patches.shape[1])
        if count < patches.shape[1]:
            assert draws is not None
            chosen = draws.topk(count, dim=1).indices.sort(dim=1).values
            patches = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[-1]))
        return Seen(image.embeds, torch.cat([image.whole[:, None], patches], dim=1))


class PooledPatches(_WithPatches):
    """The image's token and its patches', averaged over squares of the grid, row by row."""

    type: Literal["pooled_patches"] = Field(
        "pooled_patches", description="the image's token and its patches' averaged over squares of the grid"
    )
    window: int = Field(2, ge=1, description="patches a side of a square; squares at the far edges may be smaller")

    def see(self, visual: nn.Module, pixels: Tensor, draws: Tensor | None = None) -> Seen:
        """The tower's tokens of normalised images, (B, 3, S, S)."""
        import torch

        from vfm.models.image_tokens import image_tokens
        from vfm.models.patch_features import grid_size

        image = image_tokens(visual, pixels)
        pooled = pool_squares(image.patches, grid_size(visual), self.window)
        return Seen(image.embeds, torch.cat([image.whole[:, None], pooled], dim=1))


AnyCondition = Annotated[Embedding | Cls | Patches | PooledPatches, Field(discriminator="type")]


def pool_squares(patches: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Means over squares of `window` x `window` patches, (B, N', E), of patches row by row, (B, N, E)."""
    from torch.nn import functional as F

    plane = patches.transpose(1, 2).reshape(len(patches), -1, *grid)
    return F.avg_pool2d(plane, window, ceil_mode=True, count_include_pad=False).flatten(2).transpose(1, 2)


def embed(visual: Any, pixels: Tensor) -> Tensor:
    """The image embedding before the L2 norm, (B, D); CoCa's tower gives its tokens besides."""
    features = visual(pixels)
    embeds: Tensor = features[0] if isinstance(features, tuple) else features
    return embeds
