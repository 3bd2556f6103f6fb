"""The two towers of a CLIP model before a training: which of them is trained, and what in it is new."""

from __future__ import annotations

from collections.abc import Collection

from vfm.models.clip import ClipModel
from vfm.models.fitting import KeyReport


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
