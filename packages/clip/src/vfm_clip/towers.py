"""Find the trained weights of a CLIP model's towers, their new weights, and their layers that drop patches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import nn

from vfm.models import ClipModel, KeyReport, TowerName, tower_blocks, tower_layers
from vfm.train import TrainedTower
from vfm_clip.stages import Tower

__all__ = ["new_weights", "patch_dropouts", "trained_towers"]


def trained_towers(
    clip: ClipModel, vision: Tower, text: Tower, *, new: Collection[str] = ()
) -> tuple[TrainedTower, TrainedTower]:
    """Set up the training of both towers. The temperature and the bias belong to neither.

    Args:
        clip: The model.
        vision: How the vision tower is trained.
        text: How the text tower is trained.
        new: Names of weights with random values. They are trained even in a frozen tower.

    Returns:
        The vision tower and the text tower.
    """

    def tower(name: TowerName, config: Tower) -> TrainedTower:
        layers = partial(tower_layers, tower=name)
        blocks = partial(tower_blocks, tower=name)
        return TrainedTower(config.trained, clip.module, layers, blocks, new)

    return tower("image", vision), tower("text", text)


def new_weights(report: KeyReport) -> set[str]:
    """List the weights that were left at random, by their names in the CLIP model.

    They can be the projection, and EVA-CLIP's attention norms.
    """
    names = set()
    for key in report.new:
        # Names in the report are the encoder's, except for the projection's, which are the CLIP model's.
        names.add(key if key.startswith("visual.") else f"visual.trunk.{key}")
    return names


def patch_dropouts(module: nn.Module) -> Iterator[PatchDropout | PatchDropoutWithIndices]:
    """Yield the layers that drop patches. Their `prob` is the fraction that they drop."""
    return (layer for layer in module.modules() if isinstance(layer, PatchDropout | PatchDropoutWithIndices))
