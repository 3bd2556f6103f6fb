"""Settings of a detector, saved next to its weights. This module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vfm.plugin import Config

Iou = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class WindowSettings(Config):
    """Attention windows and relative positions of the encoder's blocks."""

    window: int | None = Field(None, ge=1, description="side of the windows in patches; null: all blocks are global")
    global_blocks: list[int] = Field([], description="blocks that attend to the whole image despite windows")
    relative: bool = Field(
        False, description="relative positions in every block, as in EVA-01's detectors; trained with the head"
    )
    relative_size: int | None = Field(
        None,
        ge=1,
        description="image size that the relative positions of global blocks are for, such as a released file's;"
        " default: image_size",
    )
    relative_resizing: Literal["linear", "beit"] = Field(
        "linear",
        description="how they are resized to image_size; linear: ViTDet's, beit: a cubic spline over geometric"
        " distances, as EVA-01 is evaluated at 1536 pixels",
    )

    @model_validator(mode="after")
    def _of_relative_positions(self) -> WindowSettings:
        if self.relative_size is not None and not self.relative:
            raise ValueError("relative_size has no effect with relative: false; set relative: true")
        if self.relative_resizing != "linear" and self.relative_size is None:
            raise ValueError(
                f"relative_resizing: {self.relative_resizing} has no effect without relative_size, the image size that"
                " the positions were trained for"
            )
        return self


class Proposals(Config):
    """The region proposal network."""

    aspect_ratios: list[Positive] = Field(
        [0.5, 1.0, 2.0], min_length=1, description="height divided by width of the anchors"
    )
    num_convs: int = Field(2, ge=1, description="convolutions before the predictions")
    num_samples: int = Field(256, ge=1, description="anchors per image that are trained")
    before_nms: int = Field(2000, ge=1, description="proposals per level before non-maximum suppression")
    num_proposals: int = Field(1000, ge=1, description="proposals per image")
    nms: Iou = Field(0.7, description="IoU above which the lower-scored of two proposals is dropped")


class Cascade(Config):
    """The stages of box heads, and the mask head."""

    ious: list[Iou] = Field(
        [0.5, 0.6, 0.7], min_length=1, description="IoU from which a box is positive, for each stage"
    )
    num_rois: int = Field(512, ge=1, description="boxes per image that are trained")
    positive_fraction: float = Field(0.25, gt=0, le=1, description="largest share of positive boxes among them")
    loss: Literal["softmax", "sigmoid", "federated"] = Field(
        "softmax",
        description="classification loss; federated: sigmoid on the classes of a batch and some drawn negatives",
    )
    num_federated: int = Field(50, ge=1, description="number of classes that the federated loss keeps")
    prior: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="initial probability of a class with sigmoid; null: 0.5, as in EVA's released code",
    )
    num_convs: int = Field(4, ge=0, description="convolutions of a box head")
    hidden: int = Field(1024, ge=1, description="width of a box head's linear layer")
    mask_convs: int = Field(4, ge=1, description="convolutions of the mask head")


class Selection(Config):
    """Rules that select detections from the predicted boxes."""

    score: float = Field(0.05, ge=0, lt=1, description="smallest score of a detection")
    nms: Iou = Field(0.5, description="IoU above which the lower-scored of two boxes of a class is dropped")
    soft: bool = Field(False, description="no suppression: keep all boxes for soft suppression in eval.detection")
    max_detections: int = Field(100, ge=1, description="most detections per image")


class DetectorSettings(Config):
    """All settings of a detector except its encoder."""

    image_size: int = Field(1024, ge=1, description="side of the square input in pixels")
    windows: WindowSettings = Field(WindowSettings(), description="attention windows of the encoder")
    channels: int = Field(256, ge=4, description="channels of the feature pyramid and the heads")
    masks: bool = Field(True, description="predict masks in addition to boxes")
    proposals: Proposals = Field(Proposals(), description="the region proposal network")
    cascade: Cascade = Field(Cascade(), description="the box heads and the mask head")
    selection: Selection = Field(Selection(), description="rules that select detections")

    @model_validator(mode="after")
    def _prior_of_sigmoid(self) -> DetectorSettings:
        if self.cascade.prior is not None and self.cascade.loss == "softmax":
            raise ValueError("cascade.prior has no effect with cascade.loss: softmax; use sigmoid or federated")
        return self
