"""Anchors: losses that keep a tower near its initial state while it is tuned."""

# B batch, D width of the joint space, M prompts

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vfm.models import ClipModel
from vfm_diva.parts.parts import CosineAnchor, L2SpAnchor, RelationalAnchor

EmbeddingLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss of each image, (B,), from its new and its old embedding of unit length, (B, D) each."""

WeightLoss = Callable[[nn.Module, nn.Module], Tensor]
"""The loss of a tower, a scalar, from the tower and its initial state."""


def cosine_anchor(config: CosineAnchor, clip: ClipModel) -> EmbeddingLoss:
    """Create the loss weight x (1 - cosine)."""
    return lambda new, old: config.weight * (1 - (new * old).sum(dim=-1))


def relational_anchor(config: RelationalAnchor, clip: ClipModel) -> EmbeddingLoss:
    """Create the loss weight x mean squared change of the similarities to prompts, encoded by the frozen text tower."""
    prompts = clip.encode_texts(config.prompts)  # (M, D)

    def loss(new: Tensor, old: Tensor) -> Tensor:
        change = (new - old) @ prompts.to(new.device, non_blocking=True).T  # (B, M)
        return config.weight * change.square().mean(dim=-1)

    return loss


def l2_sp_anchor(config: L2SpAnchor, clip: ClipModel) -> WeightLoss:
    """Create the loss weight / 2 x squared distance of the trained weights from their initial values."""

    def loss(visual: nn.Module, old_visual: nn.Module) -> Tensor:
        old = dict(old_visual.named_parameters())
        total = next(iter(old.values())).new_zeros(())
        for name, param in visual.named_parameters():
            if param.requires_grad:
                total = total + (param - old[name]).square().sum()
        return total * (0.5 * config.weight)

    return loss
