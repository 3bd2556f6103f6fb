"""Configurations of `eva.pretrain` and `eva.clip`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    AdamW,
    Artifact,
    ClipCheckpoint,
    CosineSchedule,
    Incidental,
    Optimizer,
    Ref,
    SampleCache,
    Schedule,
    Stage,
    VisionCheckpoint,
    VisionPretraining,
)
from vfm_eva.pretrain.parts import BlockMask, Decoder, Mask, NaFlex, Student
from vfm_eva.targets.parts import EvaTeacher, Features, Target, TargetAugmentation


class EvaPretrain(VisionPretraining):
    """Pre-train a vision transformer by masked feature modelling, from images alone (EVA, arXiv:2211.07636)."""

    version: ClassVar[int] = 2  # 2: masks are drawn in lock-step, and every masked patch of a step weighs the same
    work: ClassVar[str] = "vfm_eva.pretrain.pretrain:pretrain_eva"
    checks: ClassVar[str] = "vfm_eva.pretrain.preflight:check_eva_pretrain"
    costs: ClassVar[str] = "vfm_eva.pretrain.estimate:eva_pretrain_cost"
    can_shard: ClassVar[bool] = True

    kind: Literal["eva.pretrain"] = "eva.pretrain"
    model: str | dict[str, Any] = Field(
        "eva02_nano_patch4_32",
        description="timm name of an Eva or a plain ViT, or, with mask.ratio: 0, of any network; or a mapping of"
        " architecture and its other arguments",
    )
    start: Ref[VisionCheckpoint] | None = Field(
        None,
        description="initial encoder, in place of model: from earlier pre-training (with its mask token and head, if"
        " they fit), or any other encoder to adapt to these images",
    )
    image_size: int | None = Field(
        None, ge=1, description="pixels; default: the model's own. Positions of start are resampled to it"
    )
    image_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [],
        description="several sizes in turn, one for each step (RADIO), in place of image_size; the encoder takes all of"
        " them, and is saved at the last; needs mask.ratio: 0",
    )
    # In the identity of a stage only if it is set, so that earlier artifacts keep theirs.
    naflex: Annotated[NaFlex | None, Incidental(unless="naflex")] = Field(
        None,
        description="images of their own aspect ratio and resolution, packed into rows without padding (NaViT); a"
        " teacher sees the same patches, at its own patch size; default: square images",
    )
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] | None = Field(
        None, description="encoder that makes the target; give this, targets or teachers, unless the target needs none"
    )
    targets: Ref[SampleCache] | None = Field(
        None, description="features and crops stored by eva.targets; the teacher is not run"
    )
    teachers: list[EvaTeacher] = Field(
        [], description="several teachers at once, each with its head and weight; or one that teaches the class token"
    )
    target: Target = Field(
        Features(), description="prediction target for masked patches; default: the teacher's features"
    )
    teacher_precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="precision of the teacher's forward pass; bf16 also stores its matrices in bf16; auto: bf16 on a"
        " GPU, else the student's precision",
    )
    mask: Mask = Field(BlockMask(), description="shape of the masks, and how many patches they hide")
    encode: Literal["all", "visible"] = Field(
        "all",
        description="all: the encoder takes every patch, with a mask token for masked patches (EVA); visible: the"
        " encoder takes the visible patches, and a decoder predicts the others (EVA-L, MAE)",
    )
    decoder: Decoder = Field(Decoder(), description="the decoder of encode: visible")
    student: Student = Field(Student(), description="initial weights and regularization of the student")
    augmentation: TargetAugmentation = Field(TargetAugmentation(), description="random crops and flips")
    lr: float = Field(1.5e-3, ge=0, description="peak learning rate")
    optimizer: Optimizer = Field(AdamW(grad_clip_norm=3.0), description="optimizer and its settings")
    schedule: Schedule = Field(CosineSchedule(min_lr=1e-5), description="learning rate over the steps")

    moved: ClassVar[Mapping[str, str]] = {**VisionPretraining.moved, "mask_ratio": "mask.ratio"}

    @property
    def taught_by(self) -> list[EvaTeacher]:
        """The list of teachers, with one entry if `teacher` or `targets` is given."""
        if self.targets:
            return [EvaTeacher(targets=self.targets)]
        return self.teachers or [EvaTeacher(teacher=self.teacher, target=self.target)]

    @property
    def stored_targets(self) -> list[Ref[SampleCache]]:
        """Targets that a stage has stored, of each teacher that is not run."""
        return [entry.targets for entry in self.taught_by if entry.targets]

    @property
    def teaches_class_token(self) -> bool:
        """Whether a teacher has a loss of whole images."""
        return any(entry.class_weight for entry in self.taught_by)

    @model_validator(mode="after")
    def _one_source(self) -> EvaPretrain:
        num_sources = [bool(self.teacher), bool(self.targets), bool(self.teachers)].count(True)
        if num_sources and not self.target.needs_teacher:
            raise ValueError(f"target: {self.target.type} needs no teacher: leave out teacher, targets and teachers")
        if num_sources != 1 and self.target.needs_teacher:
            raise ValueError("give exactly one of teacher, targets and teachers")
        if self.teachers and self.target != Features():
            raise ValueError("target has no effect with teachers: set it in each of them")
        stored = self.stored_targets
        if stored and len(stored) < len(self.taught_by):
            raise ValueError(f"teachers: expected a teacher or targets in all of them; {stored[0]!r} are targets")
        fields = EvaPretrain.model_fields
        fixed = ("target", "teacher_precision", "augmentation")  # settings of the stage that stored the targets
        for name in fixed:
            if stored and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} is fixed by {stored[0]!r}; set it in the stage that makes the targets")
        sources = [entry.source for entry in self.teachers]
        for source in sources:
            if sources.count(source) > 1:
                raise ValueError(f"teachers: {source!r} is listed twice; use its weight to change its share")
        return self

    @model_validator(mode="after")
    def _one_start(self) -> EvaPretrain:
        if self.start and "model" in self.model_fields_set:
            raise ValueError("model and start exclude each other: the encoder of start has its own architecture")
        if self.start and self.student.init != "timm":
            raise ValueError(f"student.init: {self.student.init} would replace the weights of start; leave it out")
        return self

    @model_validator(mode="after")
    def _one_size(self) -> EvaPretrain:
        if self.image_sizes and self.image_size:
            raise ValueError("image_size and image_sizes exclude each other")
        if self.image_sizes and self.mask.ratio:
            raise ValueError("image_sizes needs a training without masks: set mask.ratio: 0")
        if self.image_sizes and self.stored_targets:
            raise ValueError("image_sizes needs the teacher itself: stored targets have one grid")
        return self

    @model_validator(mode="after")
    def _packable(self) -> EvaPretrain:
        if not self.naflex:
            return self
        if self.image_sizes:
            raise ValueError("naflex and image_sizes exclude each other: set naflex.seq_lens")
        for entry in self.taught_by:
            if not isinstance(entry.target, Features) or entry.targets or entry.target.mosaic:
                raise ValueError("naflex needs the features of a teacher that runs, without mosaics")
            if entry.class_weight or entry.gram_weight:
                raise ValueError("naflex is for losses of patches: leave out class_weight and gram_weight")
        # Layers of a row see several images at once, and backward passes need the row's attention.
        without = {
            "student.drop_path": self.student.drop_path > 0,
            "grad_checkpointing": self.grad_checkpointing,
            "micro_batch_size": self.micro_batch_size is not None,
            "runtime.compile": self.runtime.compile is not None,
            "runtime.parallel: fsdp": self.runtime.parallel == "fsdp",
        }
        for setting, is_set in without.items():
            if is_set:
                raise ValueError(f"naflex does not support {setting}; naflex.row_tokens bounds the memory")
        return self

    @model_validator(mode="after")
    def _decodable(self) -> EvaPretrain:
        if not self.mask.ratio and (self.encode == "visible" or not self.target.needs_teacher):
            setting = "encode: visible" if self.encode == "visible" else f"target: {self.target.type}"
            raise ValueError(f"{setting} needs masks: expected a mask.ratio above 0")
        if self.encode == "visible" and not self.mask.equal_counts:
            raise ValueError(
                f"encode: visible needs masks of equal counts; use random or block_exact, not {self.mask.type}"
            )
        if self.encode == "all" and self.decoder != Decoder():
            raise ValueError("decoder has no effect with encode: all; set encode: visible")
        return self


class EvaClip(Stage):
    """Combine a student whose class token was taught by a CLIP model with that model's text tower."""

    makes: ClassVar[type[Artifact]] = ClipCheckpoint
    work: ClassVar[str] = "vfm_eva.pretrain.as_clip:join_eva_clip"
    checks: ClassVar[str] = "vfm_eva.pretrain.as_clip:check_eva_clip"

    kind: Literal["eva.clip"] = "eva.clip"
    encoder: Ref[VisionCheckpoint] = Field(description="student of eva.pretrain, taught with class_weight")
    clip: Ref[ClipCheckpoint] = Field(description="its CLIP teacher")
    teacher_number: int = Field(0, ge=0, description="index of the CLIP model in the student's teachers, from 0")
