"""A choice of what is trained, as a plugin adds it."""

from __future__ import annotations

from typing import ClassVar, Literal

from vfm.plugin import Trained
from vfm.train import TrainedTower


class OnlyNorms(Trained):
    """A choice of a plugin."""

    type: Literal["only_norms"] = "only_norms"
    work: ClassVar[str] = "only_norms:train_norms"


def train_norms(trained: OnlyNorms, tower: TrainedTower) -> None:
    tower.freeze([name for name in layer if "norm" not in name] for layer in tower.layers(tower.root))
