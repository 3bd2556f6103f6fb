"""What keeps a tower near its old self while it is tuned: retention is asked for, not hoped for."""

# B batch, D width of the joint space, M prompts

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from vfm.models.clip import ClipModel

AnchorKind = Literal["none", "cosine", "similarity"]
DEFAULT_WEIGHTS = {"cosine": 0.3, "similarity": 10.0}


class CosineAnchor(nn.Module):
    """weight x (1 - cosine to the old embedding)."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, embeds_norm: Tensor, old_embeds_norm: Tensor) -> Tensor:
        """The loss of each image, (B,), of embeddings (B, D) of unit length."""
        return self.weight * (1 - (embeds_norm * old_embeds_norm).sum(dim=-1))


class SimilarityAnchor(nn.Module):
    """weight x the mean squared change of an image's similarities to fixed prompts.

    What the prompts do not tell apart stays free to move.
    """

    prompts: Tensor

    def __init__(self, weight: float, prompt_embeds: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("prompts", prompt_embeds, persistent=False)  # (M, D), unit length

    def forward(self, embeds_norm: Tensor, old_embeds_norm: Tensor) -> Tensor:
        """The loss of each image, (B,), of embeddings (B, D) of unit length."""
        change = (embeds_norm - old_embeds_norm) @ self.prompts.T  # (B, M)
        return self.weight * change.square().mean(dim=-1)


def make_anchor(
    kind: AnchorKind, clip: ClipModel, *, weight: float | None = None, prompts: Sequence[str] = ()
) -> CosineAnchor | SimilarityAnchor | None:
    """The anchor of a kind; its default weight is the kind's own."""
    if kind == "none":
        return None
    weight = DEFAULT_WEIGHTS[kind] if weight is None else weight
    return CosineAnchor(weight) if kind == "cosine" else SimilarityAnchor(weight, clip.encode_texts(prompts))
