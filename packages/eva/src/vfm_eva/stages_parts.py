"""Parts of the configurations of EVA: targets, teachers, masks, augmentations, the student's start and its decoder."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import ClipCheckpoint, Config, CropScale, Part, Ref, SampleCache, VisionCheckpoint

Init = Literal["timm", "eva01", "eva02", "mae"]


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


class FinetuneAugmentation(Augmentation):
    """Random crops and flips, and timm's augmentations."""

    crop_scale: CropScale = Field((0.08, 1.0), description="share of the area that a random crop keeps")
    rand_augment: str | None = Field(
        "rand-m9-mstd0.5-inc1", description="timm's RandAugment in timm's notation; null: none"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0: none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; with mixup, one of the two is drawn for each step")
    erasing: float = Field(
        0.0, ge=0, le=1, description="probability that a rectangle of an image becomes noise (timm's)"
    )


class Mask(Part):
    """The masks. `build(seeds, grid, num_masked)` returns (B, N) booleans, True = masked, one row per seed."""

    equal_counts: ClassVar[bool] = True  # every mask hides exactly `num_masked` patches

    ratio: float = Field(105 / 256, gt=0, lt=1, description="fraction of the patches that are masked; block: at most")


class BlockMask(Mask):
    """EVA's rectangles (BEiT); a mask may hide a few patches fewer."""

    equal_counts: ClassVar[bool] = False
    type: Literal["block"] = Field("block", description="EVA's rectangles")
    work: ClassVar[str] = "vfm_eva.masks:block_masks"


class BlockExactMask(Mask):
    """EVA's rectangles with an exact number of patches."""

    type: Literal["block_exact"] = Field("block_exact", description="EVA's rectangles with an exact count")
    work: ClassVar[str] = "vfm_eva.masks:block_exact_masks"


class RandomMask(Mask):
    """Single patches (MAE)."""

    type: Literal["random"] = Field("random", description="single patches")
    work: ClassVar[str] = "vfm_eva.masks:random_masks"


class Student(Config):
    """How the student starts and is regularised."""

    init: Init = Field("timm", description="initial weights: as in timm, or as in the code of EVA, EVA-02 or EVA-L")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="probability to skip the last block; falls linearly to 0 at the first"
    )
    patch_embed_grad: float = Field(
        1.0, gt=0, le=1, description="factor of the patch embedding's gradient; EVA-02 has 0.1"
    )


class Decoder(Config):
    """The decoder of `encode: visible`, which predicts the masked patches."""

    width: int = Field(512, ge=4, multiple_of=4, description="channels")
    depth: int = Field(4, ge=1, description="number of blocks")
    num_heads: int = Field(16, ge=1, description="attention heads of each block; must divide width")

    @model_validator(mode="after")
    def _whole_heads(self) -> Decoder:
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, {self.num_heads}; got {self.width}")
        return self
