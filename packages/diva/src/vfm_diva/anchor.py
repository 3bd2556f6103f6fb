"""What keeps a tower near its old self while it is tuned: retention is asked for, not hoped for."""

# B batch, D width of the joint space, M prompts

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vfm.config import Config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vfm.models.clip import ClipModel

    OfEmbeds = Callable[[Tensor, Tensor], Tensor]
    """The loss of each image, (B,), of its new and its old embedding, (B, D) of unit length."""

Weight = Annotated[float, Field(ge=0)]


class NoAnchor(Config):
    """Lets the tower go."""

    type: Literal["none"] = Field("none", description="lets the tower go (DIVA)")


class CosineAnchor(Config):
    """weight x (1 - cosine to the old embedding)."""

    type: Literal["cosine"] = Field("cosine", description="holds the direction of each image's embedding")
    weight: Weight = Field(0.3, description="of 1 - cosine to the old embedding")

    def of_embeds(self, clip: ClipModel) -> OfEmbeds:
        """The loss of embeddings."""
        return lambda new, old: self.weight * (1 - (new * old).sum(dim=-1))


class RelationalAnchor(Config):
    """weight x the mean squared change of an image's similarities to fixed prompts.

    What the prompts do not tell apart stays free to move.
    """

    type: Literal["relational"] = Field("relational", description="holds each image's similarities to given prompts")
    prompts: list[str] = Field(min_length=1, description="texts whose similarities to each image are to be kept")
    weight: Weight = Field(10.0, description="of the mean squared change of the similarities")

    def of_embeds(self, clip: ClipModel) -> OfEmbeds:
        """The loss of embeddings; the prompts are encoded by `clip`'s text tower, which stays as it is."""
        prompts = clip.encode_texts(self.prompts)  # (M, D)

        def loss(new: Tensor, old: Tensor) -> Tensor:
            change = (new - old) @ prompts.to(new.device, non_blocking=True).T  # (B, M)
            return self.weight * change.square().mean(dim=-1)

        return loss


class L2SpAnchor(Config):
    """weight / 2 x the squared distance of the trained weights from where they started.

    Source: Li, Grandvalet and Davoine 2018, L2-SP (arXiv:1802.01483), equation 2.
    """

    type: Literal["l2_sp"] = Field("l2_sp", description="holds the weights themselves near where they started (L2-SP)")
    weight: Weight = Field(0.01, description="of half the squared distance of the trained weights from their start")

    def of_weights(self, visual: nn.Module, old_visual: nn.Module) -> Tensor:
        """The loss of a tower beside its old self, a scalar."""
        old = dict(old_visual.named_parameters())
        total = next(iter(old.values())).new_zeros(())
        for name, param in visual.named_parameters():
            if param.requires_grad:
                total = total + (param - old[name]).square().sum()
        return total * (0.5 * self.weight)


AnyAnchor = Annotated[NoAnchor | CosineAnchor | RelationalAnchor | L2SpAnchor, Field(discriminator="type")]
