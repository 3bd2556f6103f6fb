"""Configuration of `models.interpolate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.base import Config
from vfm.interfaces import AnyEvaluation, Artifact, ClipCheckpoint, Ref, Stage, check_evaluations

Alpha = Annotated[float, Field(ge=0, le=1)]


class LineEvaluation(Config):
    """Evaluations of interpolated models along the line between two models."""

    tasks: list[AnyEvaluation] = Field([], description="evaluations, without `models`, of the interpolated models")
    alphas: list[Alpha] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0], min_length=1, description="positions of the evaluated models"
    )


class Interpolate(Stage):
    """Interpolate between a CLIP model and its fine-tuned version, to keep more of the original model's abilities."""

    kind: Literal["models.interpolate"] = "models.interpolate"
    start: Ref[ClipCheckpoint] = Field(description="the model at alpha 0, for example the pretrained model")
    end: Ref[ClipCheckpoint] = Field(description="the model at alpha 1, for example the fine-tuned model")
    alpha: Alpha = Field(0.5, description="position of the saved model between start and end")
    evaluation: LineEvaluation = Field(LineEvaluation(), description="evaluations along the line, which give curves")

    makes: ClassVar[type[Artifact]] = ClipCheckpoint
    work: ClassVar[str] = "vfm.eval.interpolation.interpolation:interpolate_checkpoints"
    checks: ClassVar[str] = "vfm.eval.interpolation.interpolation:check_interpolation"
    on_device: ClassVar[bool] = True
    moved: ClassVar[Mapping[str, str]] = {"evals": "evaluation.tasks", "alphas": "evaluation.alphas"}

    @model_validator(mode="after")
    def _evaluations_fit(self) -> Interpolate:
        check_evaluations(self.evaluation.tasks, self)
        return self
