"""Configurations of `eva.detect` and `eva.import_detector`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    AdamW,
    AllWeights,
    AnnotatedImages,
    Artifact,
    Config,
    DenseCheckpoint,
    Optimizer,
    Ref,
    Schedule,
    Stage,
    StepSchedule,
    Trained,
    Training,
    VisionCheckpoint,
)
from vfm_eva.dense.detect.settings import DetectorSettings


class DetectAugmentation(Config):
    """Large-scale jitter, flips and colours."""

    scale: tuple[float, float] = Field(
        (0.1, 2.0), description="size of the resized image, relative to the size that just fits the crop"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    photometric: bool = Field(False, description="change brightness, contrast, saturation and hue")

    @model_validator(mode="after")
    def _ordered(self) -> DetectAugmentation:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"expected scale with 0 < smallest <= largest, got {self.scale[0]}, {self.scale[1]}")
        return self


class EvaDetect(Training):
    """Train an encoder with a cascade of box heads and a mask head (ViTDet, EVA's and EVA-02's detectors)."""

    makes: ClassVar[type[Artifact]] = DenseCheckpoint
    work: ClassVar[str] = "vfm_eva.dense.detect.train:detect_eva"
    predictor: ClassVar[str] = "vfm_eva.dense.detect.predict:load_detector"
    checks: ClassVar[str] = "vfm_eva.dense.detect.train:check_eva_detect"
    costs: ClassVar[str] = "vfm_eva.dense.detect.estimate:eva_detect_cost"

    kind: Literal["eva.detect"] = "eva.detect"
    encoder: Ref[VisionCheckpoint] | None = Field(None, description="initial encoder; give either this or start")
    start: Ref[DenseCheckpoint] | None = Field(
        None,
        description="detector to start from, such as a detector trained on Objects365; with other classes, class scores"
        " and masks start anew",
    )
    data: Ref[AnnotatedImages] = Field(description="images with boxes, and masks if the detector has them")
    detector: DetectorSettings = Field(DetectorSettings(), description="pyramid, windows, proposals and heads")
    augmentation: DetectAugmentation = Field(DetectAugmentation(), description="jitter, flips and colours")
    patch_size: int | None = Field(
        None,
        ge=1,
        description="patch size in pixels to which the encoder's patches are resampled, such as 16 instead of 14;"
        " default: the encoder's patch size",
    )
    repeat_threshold: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="repeat images of a class that is in less than this share of the images (LVIS: 0.001); 0: never",
    )
    federated_power: float = Field(
        0.5,
        ge=0,
        description="the federated loss draws negative classes in proportion to their number of images to this power",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="probability to skip the last block, falling linearly to 0 at the first"
    )
    trained: Trained = Field(AllWeights(layer_decay=0.8), description="weights of the encoder that are trained")
    decay_vectors: bool = Field(True, description="decay biases, norms and positions too, as in the released code")
    lr: float = Field(1e-4, ge=0, description="peak learning rate, used for the heads")
    optimizer: Optimizer = Field(
        AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1), description="optimizer and its settings"
    )
    schedule: Schedule = Field(StepSchedule(), description="learning rate over the steps")
    global_batch_size: int = Field(64, ge=1, description="samples per optimizer step, over all processes")

    @model_validator(mode="after")
    def _one_start(self) -> EvaDetect:
        if (self.encoder is None) == (self.start is None):
            raise ValueError("give exactly one of encoder and start")
        return self

    @model_validator(mode="after")
    def _one_sampler(self) -> EvaDetect:
        if self.repeat_threshold and self.loading.by_column:
            raise ValueError("give either repeat_threshold or a column in loading.sampler: both repeat images")
        return self


class ImportDetector(Stage):
    """Import a detection checkpoint of EVA or EVA-02 (detectron2's format), with every key accounted for."""

    makes: ClassVar[type[Artifact]] = DenseCheckpoint
    work: ClassVar[str] = "vfm_eva.dense.detect.released:import_detector"
    checks: ClassVar[str] = "vfm_eva.dense.detect.released:check_import_detector"

    kind: Literal["eva.import_detector"] = "eva.import_detector"
    path: str = Field(description="the file, .pth or .safetensors")
    model: str | dict[str, Any] = Field(
        description="timm name of the encoder, or a mapping of architecture and its other arguments, such as"
        " {architecture: eva02_large_patch14_224, patch_size: 16}"
    )
    data: Ref[AnnotatedImages] = Field(description="images with the classes of the checkpoint, in its order")
    detector: DetectorSettings = Field(DetectorSettings(), description="settings that the checkpoint was trained with")

    def sources(self) -> Iterable[str]:
        """List the file to import."""
        return [self.path]
