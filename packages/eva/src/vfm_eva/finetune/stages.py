"""Configuration of `eva.finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    AdamW,
    AllWeights,
    Artifact,
    CropScale,
    LabeledDataset,
    Optimizer,
    Ref,
    TaggedImages,
    Trained,
    Training,
    VisionCheckpoint,
)
from vfm_eva.targets.parts import TargetAugmentation


class FinetuneAugmentation(TargetAugmentation):
    """Random crops and flips, and timm's augmentations."""

    crop_scale: CropScale = Field((0.08, 1.0), description="fraction of the image area that a random crop covers")
    rand_augment: str | None = Field(
        "rand-m9-mstd0.5-inc1", description="timm's RandAugment in timm's notation; null: none"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0: none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; with mixup, one of the two is drawn for each step")
    erasing: float = Field(
        0.0, ge=0, le=1, description="probability that a rectangle of an image becomes noise (timm's)"
    )


class EvaFinetune(Training):
    """Fine-tune all weights of an encoder as a classifier (EVA's recipe, arXiv:2211.07636, 2303.11331).

    Apply it twice for intermediate fine-tuning: a head for other classes is replaced, and a head for the same classes
    is trained further.
    """

    makes: ClassVar[type[Artifact]] = VisionCheckpoint
    work: ClassVar[str] = "vfm_eva.finetune.finetune:finetune_eva"
    checks: ClassVar[str] = "vfm_eva.finetune.finetune:check_eva_finetune"
    costs: ClassVar[str] = "vfm_eva.finetune.estimate:eva_finetune_cost"

    kind: Literal["eva.finetune"] = "eva.finetune"
    encoder: Ref[VisionCheckpoint] = Field(description="initial encoder, with or without a head")
    data: Ref[LabeledDataset | TaggedImages] = Field(
        description="images with one class each (cross-entropy) or several labels (binary cross-entropy); the classes"
        " become the head's outputs"
    )
    image_size: int | None = Field(
        None, ge=1, description="pixels; default: the encoder's. Position embeddings are resampled to another size"
    )
    global_pool: Literal["avg", "token"] = Field(
        "avg", description="avg: mean of the patch tokens, then a new norm; token: the class token"
    )
    trained: Trained = Field(
        AllWeights(layer_decay=0.8, freeze_patch_embed=True),
        description="weights of the encoder that are trained; the patch embedding is not in EVA's released code",
    )
    head_norm: Literal["none", "batch"] = Field(
        "none",
        description="batch: a batch norm without parameters before the head, as in EVA's linear probe, over all samples"
        " of a step; it becomes part of the exported head",
    )
    head_init_scale: float = Field(0.001, gt=0, description="factor of a new head's initial weights (std 0.02)")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="probability to skip the last block, falling linearly to 0 at the first"
    )
    label_smoothing: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the target spread evenly over all classes; no effect for several labels per image",
    )
    weight: str | None = Field(
        None, description="column of the data that weights each image, for a loss that is the weighted mean over a step"
    )
    augmentation: FinetuneAugmentation = Field(FinetuneAugmentation(), description="augmentation of the images")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image that the evaluation crop covers")
    lr: float = Field(1e-4, ge=0, description="peak learning rate, used for the head")
    optimizer: Optimizer = Field(AdamW(betas=(0.9, 0.999), eps=1e-8), description="optimizer and its settings")
    ema_decay: float | None = Field(
        0.9999,
        gt=0,
        lt=1,
        description="decay of an average of the weights, which is exported; null: no average",
    )

    moved: ClassVar[Mapping[str, str]] = {**Training.moved, "freeze_blocks": "trained: {type: last_blocks}"}

    @model_validator(mode="after")
    def _samples_to_norm(self) -> EvaFinetune:
        if self.head_norm == "batch" and self.global_batch_size == 1:
            raise ValueError("head_norm: batch needs the statistics of several images: expected global_batch_size >= 2")
        return self

    @model_validator(mode="after")
    def _weights_of_single_images(self) -> EvaFinetune:
        mixes = self.augmentation.mixup or self.augmentation.cutmix
        if self.weight and (mixes or self.head_norm == "batch"):
            raise ValueError(
                "weight: expected single images: set augmentation.mixup and cutmix to 0, head_norm to none"
            )
        return self

    @model_validator(mode="after")
    def _pairs_to_mix(self) -> EvaFinetune:
        if self.augmentation.mixup or self.augmentation.cutmix:
            share = self.global_batch_size // self.runtime.processes
            micro = min(self.micro_batch_size or share, share)
            if micro % 2 or share % micro % 2:
                raise ValueError(f"mixup and cutmix mix images in pairs: expected even micro-batches, got {micro}")
        return self
