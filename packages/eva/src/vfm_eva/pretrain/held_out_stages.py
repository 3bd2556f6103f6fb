"""Configuration of `eval.masked_patches`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.plugin import ClipCheckpoint, ImageDataset, ModelEvaluation, Ref, VisionCheckpoint
from vfm_eva.targets.parts import Features


class MaskedPatches(ModelEvaluation):
    """Evaluate masked pre-training on held-out images by the cosine of predictions for every second patch, as in EVA.

    In `evaluation.tasks` of a pre-training stage it warns if the student overfits a small set of images. With
    `keep_best: val/masked_cosine` the best weights are exported.
    """

    kind: Literal["eval.masked_patches"] = "eval.masked_patches"
    in_processes: ClassVar[bool] = True
    version: ClassVar[int] = 1
    evaluator: ClassVar[str] = "vfm_eva.pretrain.held_out:evaluate_masked_patches"
    checks: ClassVar[str] = "vfm_eva.pretrain.held_out:check_masked_patches"
    task: ClassVar[str] = "masked_patches"

    models: list[Ref[VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="encoders with their mask token and head; omitted in `evaluation.tasks`"
    )
    data: Ref[ImageDataset] = Field(description="images that the student is not trained on")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] | None = Field(
        None, description="encoder whose features are the target; default: the teacher used in training, if any"
    )
    target: Features = Field(Features(), description="which of the teacher's features")
