"""Configuration of `eva.segment`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    AdamW,
    AllWeights,
    AnnotatedImages,
    Artifact,
    ClipCheckpoint,
    Config,
    DenseCheckpoint,
    FrozenWeights,
    Optimizer,
    Part,
    PolySchedule,
    Ref,
    Schedule,
    Stage,
    Trained,
    Training,
    VisionCheckpoint,
)


class SegmentationHead(Part):
    """Base class of heads that predict segments from an encoder's tokens. `build` returns the model."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)


class SetLoss(Config):
    """Weights of the costs and losses for a set of predictions, and points at which masks are compared."""

    classes: float = Field(2.0, ge=0, description="weight of the cross-entropy of the class")
    mask: float = Field(5.0, ge=0, description="weight of the binary cross-entropy of the mask")
    dice: float = Field(5.0, ge=0, description="weight of the mask's dice loss")
    none: float = Field(0.1, gt=0, description="weight of queries without an object, relative to other queries")
    num_points: int = Field(12544, ge=1, description="number of points at which two masks are compared")


class QueriesSegmentation(SegmentationHead):
    """Queries in the last blocks (EoMT), for semantic, instance and panoptic segmentation."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic", "instance", "panoptic")
    work: ClassVar[str] = "vfm_eva.dense.segment.model:build_queries"

    type: Literal["queries"] = Field("queries", description="queries in the last blocks (EoMT)")
    num_queries: int = Field(100, ge=1, description="most segments that an image can have")
    num_blocks: int = Field(4, ge=1, description="number of last blocks that the queries run through")
    loss: SetLoss = Field(SetLoss(), description="weights and points of the loss")
    score_threshold: float = Field(0.8, ge=0, le=1, description="panoptic: probability from which a query counts")
    overlap_threshold: float = Field(0.8, ge=0, le=1, description="panoptic: share of its mask that a query must keep")


class LinearSegmentation(SegmentationHead):
    """Batch norm and a linear layer on the patches of some blocks."""

    work: ClassVar[str] = "vfm_eva.dense.segment.model:build_linear"

    type: Literal["linear"] = Field("linear", description="batch norm and a linear layer")
    layers: list[int] = Field([-1], min_length=1, description="blocks whose maps are concatenated")


class UperNetSegmentation(SegmentationHead):
    """UperNet on maps of four blocks, resampled to strides 4 to 32 (needs vfm-eva[upernet])."""

    work: ClassVar[str] = "vfm_eva.dense.segment.model:build_upernet"

    type: Literal["upernet"] = Field("upernet", description="UperNet (transformers' class)")
    layers: list[int] = Field([3, 5, 7, 11], min_length=4, max_length=4, description="blocks whose maps the head uses")
    channels: int = Field(768, ge=1, description="channels of the head")
    auxiliary: float = Field(0.4, ge=0, description="loss weight of a second head on the third map; 0: none")


class Mask2FormerSegmentation(SegmentationHead):
    """Mask2Former on a ViT-Adapter, to import EVA-01's released files (needs vfm-eva[upernet])."""

    work: ClassVar[str] = "vfm_eva.dense.segment.mask2former:build_mask2former"

    type: Literal["mask2former"] = Field("mask2former", description="ViT-Adapter and Mask2Former, for released files")
    channels: int = Field(1024, ge=1, description="channels of both decoders")
    num_heads: int = Field(32, ge=1, description="heads of both decoders")
    num_queries: int = Field(200, ge=1, description="most segments that a crop can have")
    pixel_layers: int = Field(6, ge=1, description="layers of the pixel decoder")
    num_layers: int = Field(
        8, ge=1, description="layers of the queries' decoder; 9 in the files with relative positions"
    )
    adapter_heads: int = Field(16, ge=1, description="heads of the adapter's attention")
    adapter_channels: int = Field(64, ge=1, description="channels of the adapter's first convolutions")
    relative: bool = Field(
        False, description="the encoder's blocks have relative positions (the files that say relpos in their names)"
    )


class SegmentAugmentation(Config):
    """Random crops, flips and colours."""

    scale: tuple[float, float] = Field(
        (0.1, 2.0),
        description="smallest and largest size of the resized image. semantic: its shorter side, in sides of the crop;"
        " otherwise relative to the size that just fits the crop",
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    photometric: bool = Field(False, description="change brightness, contrast, saturation and hue")
    max_share: float = Field(
        0.75, gt=0, le=1, description="semantic: largest share of a class in a crop; up to ten crops are drawn"
    )

    @model_validator(mode="after")
    def _ordered(self) -> SegmentAugmentation:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"expected scale with 0 < smallest <= largest, got {self.scale[0]}, {self.scale[1]}")
        return self


class EvaSegment(Training):
    """Train an encoder with a head for semantic, instance or panoptic segmentation."""

    makes: ClassVar[type[Artifact]] = DenseCheckpoint
    work: ClassVar[str] = "vfm_eva.dense.segment.train:segment_eva"
    predictor: ClassVar[str] = "vfm_eva.dense.segment.predict:load_segmenter"
    checks: ClassVar[str] = "vfm_eva.dense.segment.train:check_eva_segment"
    costs: ClassVar[str] = "vfm_eva.dense.segment.estimate:eva_segment_cost"

    kind: Literal["eva.segment"] = "eva.segment"
    encoder: Ref[VisionCheckpoint | ClipCheckpoint] = Field(
        description="initial encoder, or a CLIP model whose image tower is from timm"
    )
    data: Ref[AnnotatedImages] = Field(description="images with labels of the task")
    task: Literal["semantic", "instance", "panoptic"] = Field("semantic", description="kind of segmentation")
    head: SegmentationHead = Field(QueriesSegmentation(), description="head that predicts segments")
    trained: Trained = Field(
        AllWeights(layer_decay=0.8),
        description="weights of the encoder that are trained; if frozen, queries train copies of its last blocks",
    )
    image_size: int | None = Field(None, ge=1, description="side of a crop in pixels; default: the encoder's")
    patch_size: int | None = Field(
        None,
        ge=1,
        description="patch size in pixels to which the encoder's patches are resampled; default: the encoder's",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="probability to skip the last block, falling linearly to 0 at the first"
    )
    augmentation: SegmentAugmentation = Field(SegmentAugmentation(), description="crops, flips and colours")
    lr: float = Field(1e-4, ge=0, description="peak learning rate, used for the head")
    optimizer: Optimizer = Field(AdamW(betas=(0.9, 0.999), eps=1e-8), description="optimizer and its settings")
    schedule: Schedule = Field(PolySchedule(), description="learning rate over the steps")
    encoder_warmup_steps: int | None = Field(
        None,
        ge=0,
        description="warm-up steps of the encoder, after the schedule's warmup_steps in which its rates are 0 and only"
        " the new head learns (EoMT: 1000 after 500); default: encoder and head warm up together",
    )
    global_batch_size: int = Field(16, ge=1, description="samples per optimizer step, over all processes")

    moved: ClassVar[Mapping[str, str]] = {**Training.moved, "frozen": "trained: {type: frozen}"}

    @property
    def is_frozen(self) -> bool:
        """Whether the encoder keeps its weights."""
        return isinstance(self.trained, FrozenWeights)

    @model_validator(mode="after")
    def _encoder_is_trained(self) -> EvaSegment:
        if self.is_frozen and self.encoder_warmup_steps is not None:
            raise ValueError("encoder_warmup_steps: a frozen encoder has no rate; leave it out")
        return self

    def check_steps(self) -> None:
        """Check that both warm-ups end before the training does.

        Raises:
            ValueError: They take all steps.
        """
        super().check_steps()
        if self.encoder_warmup_steps is None:
            return
        warm = self.schedule.warmup_steps + self.encoder_warmup_steps
        if warm >= self.num_steps:
            raise ValueError(
                f"schedule.warmup_steps and encoder_warmup_steps: expected a sum below the {self.num_steps} steps, got"
                f" {warm}"
            )

    @model_validator(mode="after")
    def _possible(self) -> EvaSegment:
        if isinstance(self.head, Mask2FormerSegmentation):
            raise ValueError(
                "head: mask2former is read from released files (eva.import_segmenter) and not trained here; expected"
                " queries, linear or upernet"
            )
        if self.task not in self.head.tasks:
            raise ValueError(
                f"task: a {self.head.type} head predicts {', '.join(self.head.tasks)}, got {self.task}; queries predict"
                " all three"
            )
        return self


class ImportSegmenter(Stage):
    """Import a segmentation checkpoint released by EVA (mmsegmentation's format), with every key accounted for."""

    makes: ClassVar[type[Artifact]] = DenseCheckpoint
    work: ClassVar[str] = "vfm_eva.dense.segment.released:import_segmenter"
    checks: ClassVar[str] = "vfm_eva.dense.segment.released:check_import_segmenter"

    kind: Literal["eva.import_segmenter"] = "eva.import_segmenter"
    path: str = Field(description="the file, .pth or .safetensors")
    model: str | dict[str, Any] = Field(
        description="timm name of the encoder, or a mapping of architecture and its other arguments, such as"
        " {architecture: eva02_large_patch14_224, patch_size: 16, img_size: 512}"
    )
    data: Ref[AnnotatedImages] = Field(description="images with the classes of the checkpoint, in its order")
    head: SegmentationHead = Field(
        UperNetSegmentation(), description="settings of the checkpoint's head: upernet (EVA-02) or mask2former (EVA-01)"
    )

    @model_validator(mode="after")
    def _released(self) -> ImportSegmenter:
        if not isinstance(self.head, (UperNetSegmentation, Mask2FormerSegmentation)):
            raise ValueError(f"head: released files have upernet or mask2former, got {self.head.type}")
        return self

    def sources(self) -> Iterable[str]:
        """List the file to import."""
        return [self.path]
