"""Configurations of detection, semantic and panoptic segmentation, and dense probes of an encoder."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vfm.base import INCIDENTAL, Config, load_function
from vfm.eval.base import ModelEvaluation, ReadSettings, ResizeMode, values_of
from vfm.interfaces import (
    AnnotatedImages,
    ClipCheckpoint,
    Context,
    DenseCheckpoint,
    Evaluation,
    Ref,
    Seed,
    VisionCheckpoint,
)

Positive = Annotated[float, Field(gt=0)]


class DenseEvaluation(Evaluation):
    """Base class of evaluations of models with a dense head, also during training, and of files with predictions.

    A subclass names its function in `evaluator`: (config, Context, source, predictors by name) -> Evaluated.
    """

    work: ClassVar[str] = "vfm.eval.dense.dense_models:evaluate_dense"
    checks: ClassVar[str] = "vfm.eval.dense.checks:check_dense_evaluation"
    evaluator: ClassVar[str] = ""
    task_name: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ()  # a model needs one of them, and the data the labels of the same name
    resize_mode: ClassVar[ResizeMode | None] = None  # dense models resize images themselves

    models: list[Ref[DenseCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="models to evaluate; omitted in `evaluation.tasks`"
    )
    predictions: dict[str, str] = Field({}, description="NAME: predictions of a model that was run elsewhere")
    data: Ref[AnnotatedImages] = Field(description="images with labels to evaluate on")
    micro_batch_size: Annotated[int, INCIDENTAL] = Field(8, ge=1, description="images or crops per forward pass")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of images that cannot be read")
    num_resamples: int = Field(500, ge=100, description="resamples of the images for intervals and comparisons")

    @property
    def has_something_to_evaluate(self) -> bool:
        """Whether the configuration has models or files of predictions."""
        return bool(self.models or self.predictions)

    @property
    def result_names(self) -> list[str]:
        """Names of all models and files of predictions in the results."""
        return [*super().result_names, *self.predictions]

    @property
    def reading(self) -> ReadSettings:
        """Batch size, tolerated bad images and threads for reading `data`."""
        return ReadSettings(self.micro_batch_size, self.max_bad_fraction, max(1, self.runtime.num_workers))

    def sources(self) -> Iterable[str]:
        """List the files of predictions."""
        return self.predictions.values()

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        """Compute the value of each metric for a model in training."""
        evaluated = load_function("vfm.eval.dense.dense_models:evaluate_predictors")(self, ctx, {"model": encoder})
        return values_of(evaluated.results["model"].scores)


class Detection(DenseEvaluation):
    """Evaluate boxes and masks by average precision with the rule of COCO or LVIS, by class, size and frequency."""

    kind: Literal["eval.detection"] = "eval.detection"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.detection.detection:evaluate_detection"
    task_name: ClassVar[str] = "detection"
    tasks: ClassVar[tuple[str, ...]] = ("boxes", "masks")

    predictions: dict[str, str] = Field({}, description="NAME: COCO results file (json) of a model run elsewhere")
    shapes: list[Literal["boxes", "masks"]] | None = Field(
        None,
        min_length=1,
        description="shapes to compare; default: boxes, and also masks if data and predictions have them",
    )
    rule: Literal["auto", "coco", "lvis", "lvis_fixed"] = Field(
        "auto", description="auto: lvis for federated labels, else coco; lvis_fixed: no limit per image"
    )
    max_dets: int | None = Field(
        None,
        ge=1,
        description="limit of detections per image and class (coco, default 100), per image (lvis, 300), or per class"
        " in all images (lvis_fixed, 10,000)",
    )
    soft_nms: bool = Field(False, description="lower the scores of overlapping boxes of a class, as in EVA's tests")
    maskness: bool = Field(False, description="multiply the scores of masks by the mean probability inside them")
    class_agnostic: bool = Field(False, description="treat all classes as one, to measure how well objects are found")
    frequency_of: Ref[AnnotatedImages] | None = Field(
        None, description="training images whose counts group the classes into r, c, f; default: the groups in `data`"
    )


class Segmentation(DenseEvaluation):
    """Evaluate semantic segmentation by mean IoU, with sliding windows at one or several scales."""

    kind: Literal["eval.segmentation"] = "eval.segmentation"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.segmentation.segmentation:evaluate_segmentation"
    task_name: ClassVar[str] = "segmentation"
    tasks: ClassVar[tuple[str, ...]] = ("semantic",)

    predictions: dict[str, str] = Field(
        {}, description="NAME: folder of label maps (PNG) named by the images' keys, with labels as pixel values"
    )
    stride: float = Field(2 / 3, gt=0, le=1, description="step between windows, as a fraction of their side")
    scales: list[Positive] = Field(
        [1.0],
        min_length=1,
        description="image sizes whose scores are averaged; at 1 the shorter side is as long as the window",
    )
    flip: bool = Field(False, description="average with the scores of the mirrored image")


class Panoptic(DenseEvaluation):
    """Evaluate panoptic segmentation by panoptic quality."""

    kind: Literal["eval.panoptic"] = "eval.panoptic"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.segmentation.panoptic:evaluate_panoptic"
    task_name: ClassVar[str] = "panoptic"
    tasks: ClassVar[tuple[str, ...]] = ("panoptic",)

    predictions: dict[str, str] = Field(
        {}, description="NAME: COCO panoptic json of a model run elsewhere, with its PNG files in a folder next to it"
    )


class PatchNeighbours(Config):
    """Settings for classifying pixels by the nearest training patches."""

    k: int = Field(30, ge=1, description="number of nearest patches whose classes are averaged")
    temperature: float = Field(0.02, gt=0, description="a patch weighs exp(cosine / temperature)")
    memory: int = Field(100_000, ge=1, description="limit of stored training patches, equally many of each image")


class DenseProbe(ModelEvaluation):
    """Predict the class of each pixel from an encoder's frozen patch tokens, by a linear layer or by neighbours."""

    kind: Literal["eval.dense_probe"] = "eval.dense_probe"
    in_processes: ClassVar[bool] = True
    version: ClassVar[int] = 1
    evaluator: ClassVar[str] = "vfm.eval.segmentation.dense_probe:evaluate_dense_probe"
    checks: ClassVar[str] = "vfm.eval.dense.checks:check_dense_probe"
    task: ClassVar[str] = "dense_probe"
    of_training: ClassVar[tuple[str, ...]] = ("steps", "train_batch_size", "lrs", "weight_decay")

    models: list[Ref[ClipCheckpoint | VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="encoders with patch tokens; omitted in `evaluation.tasks`"
    )
    data: Ref[AnnotatedImages] = Field(description="images with semantic labels to evaluate on")
    train: Ref[AnnotatedImages] | None = Field(
        None,
        description="images to train on, with the same classes; default: cross-validation on `data`, which predicts"
        " each image with a probe that was not trained on it",
    )
    folds: int = Field(5, ge=2, description="number of parts of `data` without `train`")
    layers: list[int] = Field([-1], min_length=1, description="blocks whose tokens are concatenated; -1: last block")
    image_size: int | None = Field(
        None, ge=16, description="side of the squashed images in pixels; default: the encoder's image size"
    )
    steps: int = Field(1000, ge=1, description="training steps of the probe")
    train_batch_size: int = Field(16, ge=2, description="images per step")
    lrs: list[Positive] = Field(
        [1e-3],
        min_length=1,
        description="learning rates of AdamW; among several, the best is chosen on a fifth of the training images",
    )
    weight_decay: float = Field(1e-3, ge=0, description="weight decay of AdamW")
    neighbours: PatchNeighbours | None = Field(
        None, description="take classes from the nearest training patches instead of training a layer; {}: defaults"
    )
    num_resamples: int = Field(500, ge=100, description="resamples of the images for intervals and comparisons")
    seed: Seed = Field(0, description="seed of folds, order, initial weights and stored patches")

    @model_validator(mode="after")
    def _trains_or_not(self) -> Self:
        fields = type(self).model_fields
        unused = [name for name in self.of_training if getattr(self, name) != fields[name].default]
        if self.neighbours and unused:
            raise ValueError(f"{unused[0]} has no effect with neighbours, which train nothing; leave it out")
        return self

    @model_validator(mode="after")
    def _squashes(self) -> Self:
        if self.resize_mode not in (None, "squash"):
            raise ValueError(f"resize_mode: expected squash, since images are squashed here, got {self.resize_mode}")
        return self
