"""The two towers of a CLIP model in training: which of their weights stay as they are, and the noise in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import nn

from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.fitting import KeyReport
from vfm_clip.groups import Tower, tower_groups
from vfm_clip.tower_training import TowerTraining


def lock_as_planned(plan: TowerTraining, clip: ClipModel, new: Collection[str] = ()) -> None:
    """`lock_towers` by a training's settings."""
    lock_towers(
        clip,
        image=plan.lock_image,
        text=plan.lock_text,
        image_unlocked=plan.lock_image_unlocked_groups,
        text_unlocked=plan.lock_text_unlocked_layers,
        new=new,
    )


def lock_towers(
    clip: ClipModel,
    *,
    image: bool = False,
    text: bool = False,
    image_unlocked: int = 0,
    text_unlocked: int = 0,
    new: Collection[str] = (),
) -> None:
    """Takes the gradient from every weight of a locked tower and gives it to all others, in place.

    Args:
        clip: the model; its temperature belongs to neither tower and is left alone.
        image: lock the vision tower.
        text: lock the text tower.
        image_unlocked: the last groups of a locked vision tower that are trained all the same (`tower_groups`): 1 is
            the projection, 2 the last block too.
        text_unlocked: the same for the text tower.
        new: names of weights that start at random and are trained even in a locked tower.

    Raises:
        UserError: that many groups are all that the tower has.

    Source: Zhai et al. 2021, LiT (arXiv:2111.07991); the groups are those of open_clip's locks.
    """
    locks: dict[Tower, tuple[bool, int]] = {"image": (image, image_unlocked), "text": (text, text_unlocked)}
    weights = dict(clip.module.named_parameters())
    for tower, (locked, unlocked) in locks.items():
        groups = tower_groups(clip, tower)
        if unlocked >= len(groups):
            raise UserError(
                f"{clip.name}: {unlocked} unlocked groups leave no lock on its {len(groups)} ({tower} tower)"
            )
        free = len(groups) - unlocked if locked else 0
        for number, names in enumerate(groups):
            for name in names:
                weights[name].requires_grad_(number >= free or name in new)


def new_weights(report: KeyReport) -> set[str]:
    """Names, in the CLIP model, of what a hand-over left at random: the projection, EVA-CLIP's attention norms."""
    return {key if key.startswith("visual.") else f"visual.trunk.{key}" for key in report.new}


def patch_dropouts(module: nn.Module) -> Iterator[PatchDropout | PatchDropoutWithIndices]:
    """The parts of a model that leave patches out; `prob` says how many of them."""
    return (part for part in module.modules() if isinstance(part, PatchDropout | PatchDropoutWithIndices))
