"""Configuration of `eva.video`, which turns an image encoder into a video classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    AdamW,
    AllWeights,
    Artifact,
    ClipCheckpoint,
    Config,
    Optimizer,
    Ref,
    Trained,
    Training,
    VideoClassifier,
    VideoDataset,
    VisionCheckpoint,
)

Scale = Annotated[float, Field(gt=0, le=1)]


class ClipFrames(Config):
    """Number and sampling of the frames of a clip. The model sees them at once."""

    num_frames: int = Field(16, ge=1, description="number of frames per clip")
    sampling: Literal["segments", "dense"] = Field(
        "segments",
        description="segments: a frame from each of equal parts of the video (EVA); dense: frames `stride` apart",
    )
    stride: int = Field(4, ge=1, description="distance between frames of dense clips")


class VideoModel(Config):
    """Attention, time, tubelets and pooling of an image encoder that reads clips."""

    tubelet: Literal[1, 2] = Field(1, description="frames that one token covers; the patch embedding is repeated")
    attention: Literal["joint", "divided", "frame"] = Field(
        "joint",
        description="joint: every token sees all tokens of the clip (EVA); divided: time and space take turns"
        " (TimeSformer); frame: each frame by itself, as in a bag of frames",
    )
    time: Literal["frames", "table", "rope", "none"] = Field(
        "frames",
        description="encoding of frame order. frames: learned positions per frame, initialized from the image's (EVA);"
        " table: a learned vector per frame, initialized with zeros; rope: angles of time added to the spatial rotary"
        " angles; none: order is ignored",
    )
    pool: Literal["mean", "token", "attentive"] = Field(
        "mean",
        description="mean: mean of all patch tokens, then a norm; token: the class token; attentive: cross-attention of"
        " a learned query, which suits a frozen encoder",
    )

    @model_validator(mode="after")
    def _consistent(self) -> VideoModel:
        if self.time == "rope" and self.attention != "joint":
            raise ValueError(
                f"time: rope needs attention: joint, where tokens of two frames meet; got {self.attention}"
            )
        return self


class VideoAugmentation(Config):
    """Augmentation of clips, the same for all frames of a clip."""

    scales: tuple[Scale, ...] = Field(
        (1.0, 0.875, 0.75, 0.66),
        min_length=1,
        description="sides of the crop, relative to the shorter side of the video; corners or centre",
    )
    flip: float = Field(
        0.5, ge=0, le=1, description="probability of a left-right flip; 0 where classes have a direction"
    )
    color_jitter: float = Field(0.4, ge=0, le=1, description="strength of changes of brightness, contrast, saturation")
    grey: float = Field(0.2, ge=0, le=1, description="probability that a clip becomes grey")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup over whole clips; 0: none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; the same box in all frames of a clip")
    repeats: int = Field(
        1, ge=1, description="augmented clips of each video in a step, decoded at once (repeated augmentation)"
    )


class EvaVideo(Training):
    """Fine-tune an image encoder as a video classifier with attention over space and time (EVA, arXiv:2211.07636).

    Apply it twice for intermediate fine-tuning: head rows are matched by class name, and positions are interpolated to
    another number of frames.
    """

    makes: ClassVar[type[Artifact]] = VideoClassifier
    work: ClassVar[str] = "vfm_eva.video.stage:train_video"
    predictor: ClassVar[str] = "vfm_eva.video.predictor:load_predictor"
    checks: ClassVar[str] = "vfm_eva.video.stage:check_eva_video"
    costs: ClassVar[str] = "vfm_eva.video.estimate:eva_video_cost"

    kind: Literal["eva.video"] = "eva.video"
    encoder: Ref[VisionCheckpoint | ClipCheckpoint | VideoClassifier] = Field(
        description="image encoder, CLIP model whose vision tower is used, or video classifier to train further"
    )
    data: Ref[VideoDataset] = Field(description="videos with classes, which become the head's outputs")
    image_size: int | None = Field(None, ge=1, description="pixels of a frame; default: the encoder's")
    clip: ClipFrames = Field(ClipFrames(), description="number and sampling of the frames that the model sees at once")
    video: VideoModel = Field(VideoModel(), description="how the encoder reads a clip")
    trained: Trained = Field(
        AllWeights(layer_decay=0.9),
        description="weights that are trained besides the head; frozen: a cheap probe, best with pool: attentive",
    )
    head_init_scale: float = Field(0.001, gt=0, description="factor on the initial weights of new head rows (std 0.02)")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="probability to skip the last block, falling linearly to 0 at the first"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread evenly over all classes")
    augmentation: VideoAugmentation = Field(VideoAugmentation(), description="augmentation of the clips")
    lr: float = Field(1e-4, ge=0, description="peak learning rate, used for the head")
    optimizer: Optimizer = Field(AdamW(betas=(0.9, 0.999), eps=1e-8), description="optimizer and its settings")

    moved: ClassVar[Mapping[str, str]] = {**Training.moved, "frozen": "trained: {type: frozen}"}

    @model_validator(mode="after")
    def _whole_tubelets(self) -> EvaVideo:
        if self.clip.num_frames % self.video.tubelet:
            raise ValueError(
                f"clip.num_frames must be a multiple of video.tubelet, {self.video.tubelet}; got {self.clip.num_frames}"
            )
        return self

    @model_validator(mode="after")
    def _pairs_to_mix(self) -> EvaVideo:
        if self.augmentation.mixup or self.augmentation.cutmix:
            share = self.global_batch_size // self.runtime.processes
            micro = min(self.micro_batch_size or share, share)
            if micro % 2 or share % micro % 2:
                raise ValueError(f"mixup and cutmix mix videos in pairs: expected even micro-batches, got {micro}")
        return self
