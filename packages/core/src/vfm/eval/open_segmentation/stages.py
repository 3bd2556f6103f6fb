"""Configuration of `eval.open_segmentation`: semantic segmentation with class names alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.base import UserError
from vfm.eval.base import ModelEvaluation, Templates
from vfm.eval.open_segmentation.last_block_rules import (
    ClearClip,
    LastBlockRule,
    MaskClip,
    MaskClipBare,
    NaClip,
    Sclip,
    UnchangedClip,
)
from vfm.interfaces import AnnotatedImages, Preflight, Ref, Seed

Convention = Literal["voc21", "voc20", "pc60", "pc59", "object", "stuff", "city", "ade"]
Probability = Annotated[float, Field(ge=0, le=1)]


class OpenSegmentation(ModelEvaluation):
    """Segment images by class names with a CLIP model's patch tokens, without training, scored by mean IoU.

    Several rules of the last block are scored on the same images, since rules differ more than models do.
    """

    kind: Literal["eval.open_segmentation"] = "eval.open_segmentation"
    in_processes: ClassVar[bool] = True
    version: ClassVar[int] = 1
    evaluator: ClassVar[str] = "vfm.eval.open_segmentation.evaluate:evaluate_open_segmentation"
    checks: ClassVar[str] = "vfm.eval.open_segmentation.stages:check_open_segmentation"
    task: ClassVar[str] = "open_segmentation"

    data: Ref[AnnotatedImages] = Field(description="images with semantic labels to evaluate on")
    rules: list[LastBlockRule] = Field(
        [NaClip(), ClearClip(), Sclip(), MaskClipBare(), MaskClip(), UnchangedClip()],
        min_length=1,
        description="rules of the last block; the first gives the main metric",
    )
    convention: Convention | None = Field(
        None, description="published benchmark whose classes, background and short_side are used"
    )
    names: str | list[str] | None = Field(
        None, description="words for the evaluated classes, in order: a list, or a file with one line per class;"
        " default: the dataset's class names"
    )  # fmt: skip
    separator: str = Field(", ", min_length=1, description="text between the words of a class in `names`")
    templates: Templates | None = Field(
        None, min_length=1, description="prompts with a {} for the word; default: the 80 templates for ImageNet"
    )
    background: str | None = Field(
        None, description="class of pixels whose best probability is below the threshold; it is added as the first"
        " class if the dataset lacks it; default: no background, every class competes by name"
    )  # fmt: skip
    as_background: list[str] = Field([], description="classes that count as background")
    unlabelled_is_background: bool = Field(False, description="count unlabelled pixels as background")
    ignore: list[str] = Field([], description="classes that are not evaluated; their pixels count as unlabelled")
    threshold: Probability | Literal["held_out"] = Field(
        "held_out", description="threshold of the background; held_out: cross-validated for each model and rule, which"
        " chooses from `thresholds` on one half of the images for the other half"
    )  # fmt: skip
    thresholds: list[Probability] = Field(
        [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99],
        min_length=1,
        description="candidate thresholds",
    )
    short_side: int | None = Field(
        None, ge=8, description="shorter side of the images in pixels; default: 1.5 windows, or set by the convention"
    )
    window: int | Literal["whole"] | None = Field(
        None, description="side of the windows in pixels; whole: each image at once; default: the model's image size"
    )
    stride: float = Field(0.5, gt=0, le=1, description="step between windows, as a fraction of their side")
    positions: Literal["exact", "papers"] = Field(
        "exact", description="resampling of learned positions to another grid; papers: with the factor (n+.1)/n0"
    )
    logit_scale: float = Field(40.0, gt=0, description="factor of the cosines before the softmax over all words")
    min_area: Probability = Field(
        0.0, description="classes with a smaller share of an image's foreground are not predicted (SCLIP: .1 on VOC21)"
    )
    refine: Literal["none", "pamr"] = Field(
        "none", description="pamr: smooth the scores along the edges of the image, as in NACLIP's tables"
    )
    num_resamples: int = Field(500, ge=100, description="resamples of the images for intervals and comparisons")
    seed: Seed = Field(0, description="seed of the halves that choose thresholds")

    def sources(self) -> Iterable[str]:
        """List the file of the names, if any."""
        if not isinstance(self.names, str):
            return []
        return [self.names]

    @model_validator(mode="after")
    def _consistent(self) -> OpenSegmentation:
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"rules: two are named {twice!r}; give one a label")
        chosen = {"background", "as_background", "unlabelled_is_background", "ignore"} & self.model_fields_set
        if self.convention and chosen:
            raise ValueError(f"convention sets {', '.join(sorted(chosen))}; leave one of them out")
        has_background = self.background is not None or self.convention in ("voc21", "pc60", "object")
        wanting = {"as_background", "unlabelled_is_background", "threshold", "thresholds", "min_area"}
        useless = sorted(wanting & self.model_fields_set)
        if not has_background and useless:
            raise ValueError(f"{useless[0]}: there is no background; name one by `background`")
        if self.threshold != "held_out" and "thresholds" in self.model_fields_set:
            raise ValueError(f"thresholds: candidates are for threshold: held_out; got threshold: {self.threshold}")
        if self.window == "whole" and "stride" in self.model_fields_set:
            raise ValueError(f"stride: with window: whole there are no windows to move, got {self.stride}")
        if self.resize_mode:
            raise ValueError(f"resize_mode: images keep their aspect ratio here, got {self.resize_mode}")
        if isinstance(self.window, int) and self.window < 8:
            raise ValueError(f"window: expected 8 pixels or more, got {self.window}")
        return self


def check_open_segmentation(config: OpenSegmentation, ctx: Preflight) -> None:
    """Check the labels of the data, if it already exists."""
    data = ctx.artifact(config.data)
    if data:
        check_open_segmentation_data(config, data)


def check_open_segmentation_data(config: OpenSegmentation, data: AnnotatedImages) -> None:
    """Check that a dataset has semantic labels and images.

    Raises:
        UserError: If labels or images are missing.
    """
    if "semantic" not in data.labels or not data.has_images:
        got = ", ".join(data.labels) if data.has_images else "labels only"
        raise UserError(f"{config.data}: {config.kind} needs images with semantic labels, got {got}")
