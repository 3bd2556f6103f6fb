"""Parts of configurations: what a student predicts, by which teacher, of which crops."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    ClipCheckpoint,
    Config,
    CropScale,
    Ref,
    SampleCache,
    VisionCheckpoint,
)


class Target(Config):
    """Which of the teacher's features are predicted."""

    layer: int = Field(-1, description="block, from 0; negative values count from the end")
    projected: bool = Field(True, description="projected into the joint space; false: only the final norm")
    normalize: bool = Field(False, description="to unit length, before features are interpolated to another grid")


class EvaTeacher(Config):
    """One teacher of a student, which has a head of its own for it."""

    teacher: Ref[ClipCheckpoint | VisionCheckpoint] | None = Field(
        None, description="encoder whose features are the target; give either this or targets"
    )
    targets: Ref[SampleCache] | None = Field(
        None, description="features stored by eva.targets; with several, all of the same crops"
    )
    target: Target = Field(Target(), description="which of the teacher's features")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of this teacher's loss")
    loss: Literal["cosine", "phi_s"] = Field(
        "cosine",
        description="cosine: EVA's; phi_s: squared error of features that are centred and scaled to a mean variance of"
        " 1 (PHI-S), by the statistics of some images",
    )
    statistics_images: int = Field(512, ge=1, description="phi_s: number of first images for mean and variance")
    class_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight, relative to the masked patches, of a loss that teaches the class token the teacher's"
        " feature of the whole image; 0: the class token is not taught",
    )

    @model_validator(mode="after")
    def _one_source(self) -> EvaTeacher:
        if (self.teacher is None) == (self.targets is None):
            raise ValueError("give exactly one of teacher and targets")
        if self.targets and self.target != Target():
            raise ValueError(f"target is fixed by {self.targets!r}; set it in the stage that makes the targets")
        if self.targets and self.class_weight:
            raise ValueError("class_weight needs the teacher itself: targets hold features of patches only")
        if self.loss != "phi_s" and self.statistics_images != EvaTeacher.model_fields["statistics_images"].default:
            raise ValueError("statistics_images has no effect with loss: cosine; set loss: phi_s")
        return self


class Augmentation(Config):
    """Random crops and flips."""

    crop_scale: CropScale = Field((0.2, 1.0), description="share of the area that a random crop keeps")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
