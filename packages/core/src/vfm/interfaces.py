"""The interfaces: abstract stages that fix inputs and output, so that another method drops in where ours stands."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, CuratedSubset, ImageDataset, Matches, PairDataset, Report, VisionCheckpoint
from vfm.config import Config
from vfm.stage import Context, Ref, Stage


class Curation(Stage):
    """Chooses pairs of a pool, from what its texts matched."""

    matches: Ref[Matches]
    seed: int = 0

    @abstractmethod
    def run(self, ctx: Context) -> CuratedSubset: ...


class CheckpointPolicy(Config):
    """When a training saves what it needs to go on after a crash. Resuming is exact wherever the cut falls."""

    every_steps: int | None = Field(None, ge=1)
    every_minutes: float = Field(5.0, gt=0)


class Training(Stage):
    """What all trainings share. An optimiser step takes `global_batch_size` samples, perhaps in micro-batches."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; give this or samples_seen")
    samples_seen: int | None = Field(None, ge=1, description="samples to train on in all; give this or steps")
    global_batch_size: int = Field(128, ge=1, description="samples an optimiser step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="samples a forward pass of one process; default: no accumulation"
    )
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="for sgd")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    min_lr: float = Field(0.0, ge=0)
    grad_clip_norm: float | None = Field(None, gt=0)
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="average the weights; the average is what is exported"
    )
    precision: Literal["fp32", "amp_bf16"] = "fp32"
    grad_checkpointing: bool = False
    shuffle_shards: int = Field(1000, ge=1, description="shards whose samples are shuffled together")
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="stop when more samples than this share cannot be read"
    )
    log_every: int = Field(10, ge=1, description="steps between reads of the metrics")
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    seed: int = 0

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.steps is None) == (self.samples_seen is None):
            raise ValueError("give exactly one of steps and samples_seen")
        return self

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps or max(1, (self.samples_seen or 0) // self.global_batch_size)


class VisionPretraining(Training):
    """Trains a vision encoder from images."""

    data: Ref[ImageDataset]

    @abstractmethod
    def run(self, ctx: Context) -> VisionCheckpoint: ...


class ClipTraining(Training):
    """Trains a CLIP model from pairs."""

    data: Ref[PairDataset]

    @abstractmethod
    def run(self, ctx: Context) -> ClipCheckpoint: ...


class ClipPostTraining(Training):
    """Improves a trained CLIP model, from images alone."""

    clip: Ref[ClipCheckpoint]
    data: Ref[ImageDataset]

    @abstractmethod
    def run(self, ctx: Context) -> ClipCheckpoint: ...


class Evaluation(Stage):
    """Judges models on one data set, all on the same items; each is compared with the first by a paired test."""

    models: list[Ref[ClipCheckpoint]] = Field(min_length=1)

    @abstractmethod
    def run(self, ctx: Context) -> Report: ...
