"""Configurations of `eva.targets`, `eva.pretrain` and `eva.finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vfm.plugin import (
    INCIDENTAL,
    AdamW,
    Artifact,
    ClipCheckpoint,
    CosineSchedule,
    ImageDataset,
    LabeledDataset,
    Optimizer,
    Ref,
    SampleCache,
    Schedule,
    Seed,
    Stage,
    TaggedImages,
    Training,
    VisionCheckpoint,
    VisionPretraining,
)
from vfm_eva.stages_parts import (
    Augmentation,
    BlockMask,
    Decoder,
    EvaTeacher,
    FinetuneAugmentation,
    Mask,
    Student,
    Target,
)

Side = Annotated[int, Field(ge=1)]


class EvaTargets(Stage):
    """Compute a teacher's features of a dataset's images once, so that `eva.pretrain` need not run the teacher."""

    makes: ClassVar[type[Artifact]] = SampleCache
    work: ClassVar[str] = "vfm_eva.targets:compute_targets"
    checks: ClassVar[str] = "vfm_eva.targets:check_eva_targets"

    kind: Literal["eva.targets"] = "eva.targets"
    data: Ref[ImageDataset] = Field(description="images to train on later")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="encoder whose features are the target")
    target: Target = Field(Target(), description="which of the teacher's features")
    grid: tuple[Side, Side] = Field(description="rows and columns of the student's patches")
    num_crops: int = Field(1, ge=1, description="crops of each image; epochs take them in turn")
    augmentation: Augmentation = Field(Augmentation(), description="random crops and flips")
    dtype: Literal["int8", "fp16", "fp32"] = Field("fp16", description="stored precision of the features")
    components: int | None = Field(
        None, ge=1, description="store this many principal components; default: all channels"
    )
    pca_images: int = Field(512, ge=1, description="number of images, drawn by the seed, to fit the PCA on")
    precision: Literal["fp32", "amp_bf16"] = Field("fp32", description="of the teacher's forward pass")
    micro_batch_size: Annotated[int, INCIDENTAL] = Field(64, ge=1, description="crops per forward pass")
    samples_per_shard: int | None = Field(
        None, ge=1, description="samples per file, the most that a crash can lose; default: about 128 MiB"
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="tolerated fraction of samples that cannot be read; above it the stage stops"
    )
    seed: Seed = Field(0, description="of the crops")

    moved: ClassVar[Mapping[str, str]] = {"crop_scale": "augmentation.crop_scale", "flip": "augmentation.flip"}


class EvaPretrain(VisionPretraining):
    """Pre-train a vision transformer by masked feature modelling, from images alone (EVA, arXiv:2211.07636)."""

    version: ClassVar[int] = 2  # since masks are drawn in lock-step and every masked patch of a step weighs the same
    work: ClassVar[str] = "vfm_eva.pretrain:pretrain_eva"
    checks: ClassVar[str] = "vfm_eva.preflight:check_eva_pretrain"
    costs: ClassVar[str] = "vfm_eva.estimate:eva_pretrain_cost"
    can_shard: ClassVar[bool] = True

    kind: Literal["eva.pretrain"] = "eva.pretrain"
    model: str | dict[str, Any] = Field(
        "eva02_nano_patch4_32",
        description="timm name of an Eva or a plain ViT; or a mapping of architecture and its other arguments",
    )
    start: Ref[VisionCheckpoint] | None = Field(
        None,
        description="encoder to go on from, in place of model: of an earlier pre-training (with its mask token and"
        " head, if they fit), or any other to be adapted to these images",
    )
    image_size: int | None = Field(
        None, ge=1, description="pixels; default: the model's own. Positions of start are resampled to it"
    )
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] | None = Field(
        None, description="encoder whose features are the target; give this, targets or teachers"
    )
    targets: Ref[SampleCache] | None = Field(
        None, description="features and crops stored by eva.targets; the teacher is not run"
    )
    teachers: list[EvaTeacher] = Field(
        [], description="several teachers at once, each with its head and weight; or one that teaches the class token"
    )
    target: Target = Field(Target(), description="which of the teacher's features")
    teacher_precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="of the teacher's forward pass; bf16 also stores its matrices in bf16; auto: bf16 on a GPU, else"
        " that of the student",
    )
    mask: Mask = Field(BlockMask(), description="the masks")
    encode: Literal["all", "visible"] = Field(
        "all",
        description="all: the encoder takes every patch, masked ones as a mask token (EVA); visible: the encoder takes"
        " the visible patches, and a decoder predicts the others (EVA-L, MAE)",
    )
    decoder: Decoder = Field(Decoder(), description="the decoder of encode: visible")
    student: Student = Field(Student(), description="how the student starts and is regularised")
    augmentation: Augmentation = Field(Augmentation(), description="random crops and flips")
    lr: float = Field(1.5e-3, ge=0, description="peak learning rate")
    optimizer: Optimizer = Field(AdamW(grad_clip_norm=3.0), description="optimizer and its settings")
    schedule: Schedule = Field(CosineSchedule(min_lr=1e-5), description="learning rate over the steps")

    moved: ClassVar[Mapping[str, str]] = {**VisionPretraining.moved, "mask_ratio": "mask.ratio"}

    @property
    def taught_by(self) -> list[EvaTeacher]:
        """The teachers, also if it is only one."""
        if self.targets:
            return [EvaTeacher(targets=self.targets)]
        return self.teachers or [EvaTeacher(teacher=self.teacher, target=self.target)]

    @model_validator(mode="after")
    def _one_source(self) -> EvaPretrain:
        if [bool(self.teacher), bool(self.targets), bool(self.teachers)].count(True) != 1:
            raise ValueError("give exactly one of teacher, targets and teachers")
        stored = [str(entry.targets) for entry in self.taught_by if entry.targets]
        if stored and len(stored) < len(self.taught_by):
            raise ValueError(f"teachers: expected a teacher or targets in all of them; {stored[0]!r} are targets")
        fields = EvaPretrain.model_fields
        changed = [
            name
            for name in ("target", "teacher_precision", "augmentation")
            if getattr(self, name) != fields[name].default
        ]
        if stored and changed:
            raise ValueError(f"{changed[0]} is fixed by {stored[0]!r}; set it in the stage that makes the targets")
        if self.teachers and self.target != Target():
            raise ValueError("target has no effect with teachers: set it in each of them")
        names = [str(entry.teacher or entry.targets) for entry in self.teachers]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"teachers: {repeated[0]!r} is listed twice; use its weight to change its share")
        return self

    @model_validator(mode="after")
    def _one_start(self) -> EvaPretrain:
        if self.start and "model" in self.model_fields_set:
            raise ValueError("model and start exclude each other: the encoder of start has its own architecture")
        if self.start and self.student.init != "timm":
            raise ValueError(f"student.init: {self.student.init} would replace the weights of start; leave it out")
        return self

    @model_validator(mode="after")
    def _decodable(self) -> EvaPretrain:
        if self.encode == "visible" and not self.mask.equal_counts:
            raise ValueError(
                f"encode: visible needs masks of equal counts; use random or block_exact, not {self.mask.type}"
            )
        if self.encode == "all" and self.decoder != Decoder():
            raise ValueError("decoder has no effect with encode: all; set encode: visible")
        return self


class EvaClip(Stage):
    """Join a student whose class token a CLIP model has taught with that model's text tower to a CLIP model."""

    makes: ClassVar[type[Artifact]] = ClipCheckpoint
    work: ClassVar[str] = "vfm_eva.as_clip:join_eva_clip"
    checks: ClassVar[str] = "vfm_eva.as_clip:check_eva_clip"

    kind: Literal["eva.clip"] = "eva.clip"
    encoder: Ref[VisionCheckpoint] = Field(description="student of eva.pretrain, taught with class_weight")
    clip: Ref[ClipCheckpoint] = Field(description="its CLIP teacher")
    teacher_number: int = Field(0, ge=0, description="place of the CLIP model in the student's teachers, from 0")


class EvaFinetune(Training):
    """Fine-tune an encoder as a classifier, all of its weights (EVA's recipe, arXiv:2211.07636, 2303.11331).

    Applied twice it is intermediate fine-tuning: a head for other classes is replaced, one for the same classes is
    trained further.
    """

    makes: ClassVar[type[Artifact]] = VisionCheckpoint
    work: ClassVar[str] = "vfm_eva.finetune:finetune_eva"
    checks: ClassVar[str] = "vfm_eva.finetune:check_eva_finetune"
    costs: ClassVar[str] = "vfm_eva.estimate_labeled:eva_finetune_cost"

    kind: Literal["eva.finetune"] = "eva.finetune"
    encoder: Ref[VisionCheckpoint] = Field(description="initial encoder, with or without a head")
    data: Ref[LabeledDataset | TaggedImages] = Field(
        description="images with one class each (cross-entropy) or several labels (binary cross-entropy); they become"
        " the head's outputs"
    )
    image_size: int | None = Field(
        None, ge=1, description="pixels; default: the encoder's. Position embeddings are resampled to another size"
    )
    global_pool: Literal["avg", "token"] = Field(
        "avg", description="avg: mean of the patch tokens, then a new norm; token: the class token"
    )
    layer_decay: float = Field(
        0.8, gt=0, le=1, description="learning rate of a layer, as a factor of that of the layer after it"
    )
    freeze_patch_embed: bool = Field(True, description="do not train the patch embedding, as in EVA's released code")
    freeze_blocks: int | Literal["all"] = Field(
        0, description="first blocks that are not trained, with all that is before them; all: only the head is trained"
    )
    head_norm: Literal["none", "batch"] = Field(
        "none",
        description="batch: a batch norm without parameters before the head, as in EVA's linear probe, over all samples"
        " of a step; it becomes part of the exported head",
    )
    head_init_scale: float = Field(0.001, gt=0, description="factor of a new head's initial weights (std 0.02)")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="probability to skip the last block; falls linearly to 0 at the first"
    )
    label_smoothing: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the target spread evenly over all classes; without effect for several labels an image",
    )
    augmentation: FinetuneAugmentation = Field(FinetuneAugmentation(), description="augmentation of the images")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image that the evaluation's crop keeps")
    lr: float = Field(1e-4, ge=0, description="peak learning rate, that of the head")
    optimizer: Optimizer = Field(AdamW(betas=(0.9, 0.999), eps=1e-8), description="optimizer and its settings")
    ema_decay: float | None = Field(
        0.9999,
        gt=0,
        lt=1,
        description="decay of an average of the weights, which is exported; null: no average",
    )

    @field_validator("freeze_blocks", mode="before")
    @classmethod
    def _is_number_of_blocks(cls, freeze_blocks: Any) -> Any:
        # pydantic would take true as 1
        if isinstance(freeze_blocks, bool) or (isinstance(freeze_blocks, int) and freeze_blocks < 0):
            raise ValueError(f"expected 0 or more blocks, or all; got {str(freeze_blocks).lower()}")
        return freeze_blocks

    @model_validator(mode="after")
    def _samples_to_norm(self) -> EvaFinetune:
        if self.head_norm == "batch" and self.global_batch_size == 1:
            raise ValueError("head_norm: batch needs the statistics of several images: expected global_batch_size >= 2")
        return self

    @model_validator(mode="after")
    def _pairs_to_mix(self) -> EvaFinetune:
        if self.augmentation.mixup or self.augmentation.cutmix:
            share = self.global_batch_size // self.runtime.processes
            micro = min(self.micro_batch_size or share, share)
            if micro % 2 or share % micro % 2:
                raise ValueError(f"mixup and cutmix mix images in pairs: expected even micro-batches, got {micro}")
        return self
