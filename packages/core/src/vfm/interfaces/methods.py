"""Interfaces of curation, pre-training, CLIP training and post-training methods."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator

from vfm.base import Config, repeated
from vfm.interfaces.artifact import Artifact
from vfm.interfaces.checkpoints import ClipCheckpoint, VisionCheckpoint
from vfm.interfaces.datasets import CuratedSubset, ImageDataset, Matches, PairDataset
from vfm.interfaces.stage import Ref, Seed, Stage
from vfm.interfaces.training import Training

Share = Annotated[float, Field(gt=0, le=1)]


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"expected the smaller value first, got {list(pair)}")
    return pair


CropScale = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
"""Smallest and largest fraction of an image's area that a random crop keeps."""


class PoolCuration(Stage):
    """Choose pairs of a pool by the metadata entries that their texts match."""

    makes: ClassVar[type[Artifact]] = CuratedSubset

    matches: Ref[Matches] = Field(description="texts of the pool with their matched entries")
    seed: Seed = Field(0, description="seed of the random draws that keep or drop texts")


class VisionPretraining(Training):
    """Train a vision encoder from images."""

    makes: ClassVar[type[Artifact]] = VisionCheckpoint

    data: Ref[ImageDataset] = Field(description="training images")


class Portion(Config):
    """One of the datasets that a training stage mixes."""

    data: Ref[PairDataset] = Field(description="training pairs")
    weight: float = Field(1.0, gt=0, description="fraction of the samples, relative to the other weights")


class ClipTraining(Training):
    """Train a CLIP model from pairs."""

    makes: ClassVar[type[Artifact]] = ClipCheckpoint

    data: Ref[PairDataset] | Annotated[list[Portion], Field(min_length=1)] = Field(
        description="training pairs, or several datasets with weights, mixed in every batch"
    )

    @property
    def portions(self) -> list[Portion]:
        """The datasets, a single one or the parts of a mixture."""
        if isinstance(self.data, list):
            return self.data
        return [Portion(data=self.data)]

    @model_validator(mode="after")
    def _each_once(self) -> ClipTraining:
        twice = repeated(portion.data for portion in self.portions)
        if twice:
            raise ValueError(f"data: '{twice[0]}' is listed twice; use its weight to change its share")
        return self


class ClipPostTraining(Training):
    """Improve a trained CLIP model from images alone."""

    makes: ClassVar[type[Artifact]] = ClipCheckpoint

    clip: Ref[ClipCheckpoint] = Field(description="model to improve")
    data: Ref[ImageDataset] = Field(description="training images")
