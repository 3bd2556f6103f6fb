"""Parts of configurations: what a student predicts, by which teacher, of which crops."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    ClipCheckpoint,
    Config,
    CropScale,
    Part,
    Ref,
    SampleCache,
    VisionCheckpoint,
)


class Target(Part):
    """Base class of what a student predicts of masked patches.

    `build(student, encoder, bf16=...)` returns a `PatchTarget` (`vfm_eva.targets.teacher`). `encoder` is the teacher's
    model, None without one; `bf16` says whether it computes in bf16, None: as the student.
    """

    needs_teacher: ClassVar[bool] = True
    has_features: ClassVar[bool] = False  # predicts a teacher's features, which other losses and evaluations compare


class Features(Target):
    """Features of the teacher, by their cosine (EVA)."""

    type: Literal["features"] = Field("features", description="features of the teacher (EVA)")
    work: ClassVar[str] = "vfm_eva.targets.teacher:features_of"
    has_features: ClassVar[bool] = True
    layer: int = Field(-1, description="block, from 0; negative values count from the end")
    projected: bool = Field(True, description="projected into the joint space; false: only the final norm")
    normalize: bool = Field(False, description="to unit length, before features are interpolated to another grid")


class Pixels(Target):
    """The patches themselves, each of mean 0 and variance 1, by their squared error (MAE, arXiv:2111.06377)."""

    type: Literal["pixels"] = Field("pixels", description="the patch itself, of mean 0 and variance 1 (MAE)")
    work: ClassVar[str] = "vfm_eva.targets.pixels:PixelTarget"
    needs_teacher: ClassVar[bool] = False


class Codes(Target):
    """Codes of a tokenizer, by cross-entropy: the nearest of some centres of the teacher's features.

    Sources: BEiT (arXiv:2106.08254) for codes as targets; HuBERT (arXiv:2106.07447) for k-means as the tokenizer.
    """

    type: Literal["codes"] = Field("codes", description="codes of the teacher's features, by k-means (BEiT)")
    work: ClassVar[str] = "vfm_eva.targets.codes:codes_of"
    num_codes: int = Field(512, ge=2, description="number of codes")
    layer: int = Field(-1, description="block of the teacher, from 0; negative values count from the end")
    projected: bool = Field(False, description="features projected into the joint space; false: only the final norm")


class EvaTeacher(Config):
    """One teacher of a student, which has a head of its own for it."""

    teacher: Ref[ClipCheckpoint | VisionCheckpoint] | None = Field(
        None, description="encoder whose features are the target; give either this or targets"
    )
    targets: Ref[SampleCache] | None = Field(
        None, description="features stored by eva.targets; with several, all of the same crops"
    )
    target: Target = Field(Features(), description="what is predicted: by default the teacher's features")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of this teacher's loss")
    loss: Literal["cosine", "phi_s"] = Field(
        "cosine",
        description="cosine: EVA's; phi_s: squared error of features that are centred and scaled to a mean variance of"
        " 1 (PHI-S), by the statistics of some images",
    )
    statistics_images: int = Field(512, ge=1, description="phi_s and codes: number of first images for statistics")
    class_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight, relative to the masked patches, of a loss that teaches the class token the teacher's"
        " feature of the whole image; 0: the class token is not taught",
    )

    @property
    def source(self) -> str:
        """What the target is made from, for names and messages."""
        return str(self.teacher or self.targets or self.target.type)

    @model_validator(mode="after")
    def _one_source(self) -> EvaTeacher:
        if not self.target.needs_teacher and (self.teacher or self.targets):
            raise ValueError(f"target: {self.target.type} needs no teacher: leave out teacher and targets")
        if self.target.needs_teacher and (self.teacher is None) == (self.targets is None):
            raise ValueError("give exactly one of teacher and targets")
        if self.targets and self.target != Features():
            raise ValueError(f"target is fixed by {self.targets!r}; set it in the stage that makes the targets")
        if self.targets and self.class_weight:
            raise ValueError("class_weight needs the teacher itself: targets hold features of patches only")
        if not self.target.has_features and (self.class_weight or self.loss != "cosine"):
            option = "class_weight" if self.class_weight else "loss"
            raise ValueError(f"{option} has no effect with target: {self.target.type}; leave it out")
        if (
            isinstance(self.target, Features)
            and self.loss != "phi_s"
            and self.statistics_images != EvaTeacher.model_fields["statistics_images"].default
        ):
            raise ValueError("statistics_images has no effect with loss: cosine; set loss: phi_s")
        return self


class Augmentation(Config):
    """Random crops and flips."""

    crop_scale: CropScale = Field((0.2, 1.0), description="share of the area that a random crop keeps")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
