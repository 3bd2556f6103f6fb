"""The two towers of a CLIP model before a training: how the projection starts, and which of them is trained."""

from __future__ import annotations

from collections.abc import Collection

import torch
from open_clip.timm_model import TimmModel
from torch import nn

from vfm.models.clip import ClipModel
from vfm.models.hand_over import KeyReport


def start_projection(clip: ClipModel, seed: int = 0) -> None:
    """Draws the projection of a timm vision tower anew, with open_clip's deviation of 1 / sqrt(width), in place.

    timm makes the head of an `Eva` a thousand times smaller, for fine-tuning. Features are normalised, so the loss does
    not see that, but gradients are as many times larger at first, and AdamW keeps the steps small long after. Trained
    from scratch on the made world, EVA02-Nano-8-32 leaves a loss of ln N after 40 steps instead of 100.

    Args:
        clip: a model with random weights; with open_clip's own vision tower it is left as it is.
        seed: of the draw.
    """
    trunk = clip.module.visual.trunk if isinstance(clip.module.visual, TimmModel) else None
    head = getattr(trunk, "head", None)
    if isinstance(head, nn.Linear):
        draw = torch.Generator().manual_seed(seed)
        nn.init.normal_(head.weight, std=head.in_features**-0.5, generator=draw)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def lock_towers(clip: ClipModel, *, image: bool = False, text: bool = False, new: Collection[str] = ()) -> None:
    """Takes the gradient from every weight of a locked tower and gives it to all others, in place.

    Args:
        clip: the model; its temperature belongs to neither tower and is left alone.
        image: lock the vision tower.
        text: lock the text tower.
        new: names of weights that start at random and are trained even in a locked tower.

    Source: Zhai et al. 2021, LiT (arXiv:2111.07991).
    """
    for name, parameter in clip.module.named_parameters():
        if name not in ("logit_scale", "logit_bias"):
            locked = image if name.startswith("visual.") else text
            parameter.requires_grad_(not locked or name in new)


def new_weights(report: KeyReport) -> set[str]:
    """Names, in the CLIP model, of what a hand-over left at random: the projection, EVA-CLIP's attention norms."""
    return {key if key.startswith("visual.") else f"visual.trunk.{key}" for key in report.new}
