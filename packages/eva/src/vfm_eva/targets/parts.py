"""Configurations of prediction targets, teachers and crops."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import ClipCheckpoint, Config, CropScale, Part, Ref, SampleCache, VisionCheckpoint


class Target(Part):
    """Base class of the targets that a student predicts for masked patches.

    `build(student, encoder, bf16=...)` returns a `PatchTarget` (`vfm_eva.targets.patch_target`). `encoder` is the
    teacher's model, or None without a teacher. `bf16` sets whether the teacher computes in bf16. None: as the student
    does.
    """

    needs_teacher: ClassVar[bool] = True
    has_features: ClassVar[bool] = False  # the target is a teacher's features, as other losses and evaluations need


class Features(Target):
    """Features of the teacher, with a cosine loss (EVA)."""

    type: Literal["features"] = Field("features", description="features of the teacher (EVA)")
    work: ClassVar[str] = "vfm_eva.targets.teacher:features_of"
    has_features: ClassVar[bool] = True
    layer: int = Field(-1, description="block, from 0; negative values count from the end")
    projected: bool = Field(True, description="projected into the joint space; false: only the final norm")
    normalize: bool = Field(False, description="to unit length, before features are interpolated to another grid")
    mosaic: bool = Field(
        False,
        description="images of several samples share one image of a teacher that is larger than the student (RADIO);"
        " false: each is enlarged",
    )


class Pixels(Target):
    """Pixels of each patch, normalised to mean 0 and variance 1, with a squared error loss (MAE, arXiv:2111.06377)."""

    type: Literal["pixels"] = Field("pixels", description="pixels of the patch, normalised to mean 0, variance 1 (MAE)")
    work: ClassVar[str] = "vfm_eva.targets.pixels:PixelTarget"
    needs_teacher: ClassVar[bool] = False


class Codes(Target):
    """Tokenizer codes with a cross-entropy loss. The code of a patch is the nearest centre of the teacher's features.

    Sources: BEiT (arXiv:2106.08254) for codes as targets, HuBERT (arXiv:2106.07447) for k-means as the tokenizer.
    """

    type: Literal["codes"] = Field("codes", description="codes of the teacher's features, by k-means (BEiT)")
    work: ClassVar[str] = "vfm_eva.targets.codes:codes_of"
    num_codes: int = Field(512, ge=2, description="number of codes")
    layer: int = Field(-1, description="block of the teacher, from 0; negative values count from the end")
    projected: bool = Field(False, description="features projected into the joint space; false: only the final norm")


class EvaTeacher(Config):
    """One of a student's teachers. The student has a separate head for each teacher."""

    teacher: Ref[ClipCheckpoint | VisionCheckpoint] | None = Field(
        None, description="encoder whose features are the target; give either this or targets"
    )
    targets: Ref[SampleCache] | None = Field(
        None, description="features stored by eva.targets; with several, all of the same crops"
    )
    target: Target = Field(Features(), description="prediction target; default: the teacher's features")
    weight: float = Field(1.0, gt=0, description="weight of this teacher's loss")
    loss: Literal["cosine", "phi_s", "variance"] = Field(
        "cosine",
        description="cosine: EVA's loss; variance: squared error of features that are centred and divided by one"
        " number, so that their mean variance is 1; phi_s: also rotated, so that every channel has variance 1 (PHI-S)",
    )
    statistics_images: int = Field(
        512, ge=1, description="phi_s, variance and codes: number of first images for statistics"
    )
    class_weight: float = Field(
        0.0,
        ge=0,
        description="weight of a loss that teaches the class token the teacher's feature of the whole image, relative"
        " to the masked patches; 0: the class token is not taught",
    )

    gram_weight: float = Field(
        0.0,
        ge=0,
        description="weight of a Gram anchor (DINOv3), relative to the patches: the cosines of an image's patches with"
        " one another become the teacher's; 0: none",
    )

    @property
    def source(self) -> str:
        """Teacher, stored targets or type of target, for names and messages."""
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
        if isinstance(self.target, Features) and self.target.mosaic and self.class_weight:
            raise ValueError("class_weight needs target.mosaic: false: a mosaic has no feature of each whole image")
        if not self.target.has_features and (self.class_weight or self.gram_weight or self.loss != "cosine"):
            option = "gram_weight" if self.gram_weight else "loss"
            if self.class_weight:
                option = "class_weight"
            raise ValueError(f"{option} has no effect with target: {self.target.type}; leave it out")
        if (
            isinstance(self.target, Features)
            and self.loss == "cosine"
            and self.statistics_images != EvaTeacher.model_fields["statistics_images"].default
        ):
            raise ValueError("statistics_images has no effect with loss: cosine; set loss: phi_s")
        return self


class TargetAugmentation(Config):
    """Random crops and flips."""

    crop_scale: CropScale = Field((0.2, 1.0), description="fraction of the image area that a random crop covers")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
