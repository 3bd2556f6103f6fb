"""All that one pass of a vision tower says of an image: its embedding, its feature, its patches'."""

# B batch, N patches, D width of the tower, E of the joint space

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vfm.models.clip import ClipModel
from vfm.models.patch_features import read_tokens, vision_tower


@dataclass(frozen=True)
class ImageTokens:
    """What a tower says of images."""

    embeds: Tensor  # (B, E), in the joint space: `encode_image` before the L2 norm
    feature: Tensor  # (B, D), before the projection
    patches: Tensor  # (B, N, E) where the model can project patches, else (B, N, D) as the final norm leaves them
    are_projected: bool

    @property
    def whole(self) -> Tensor:
        """The image's own token, as wide as a patch's: `embeds`, or `feature` where patches are not projected."""
        return self.embeds if self.are_projected else self.feature


def image_tokens(model: ClipModel | nn.Module, pixels: Tensor) -> ImageTokens:
    """The image's tokens and its patches' from one pass, with gradients, of any vision transformer.

    Args:
        model: as `patch_features`.
        pixels: normalised images, (B, 3, H, W).

    Raises:
        UserError: the model has no patch tokens, or a pooling head that gives no feature of their width.
    """
    tower = vision_tower(model)
    tokens = read_tokens(tower, pixels, -1)
    feature, patches = tower.pool(tokens), tower.norm(tokens.patches)
    projected = patches if tower.project is None else tower.project(patches)
    return ImageTokens(tower.embed(feature), feature, projected, tower.project is not None)
