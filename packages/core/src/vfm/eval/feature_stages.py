"""The evaluations of image features alone, `eval.linear_probe` and `eval.knn`: any vision encoder fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from vfm.artifacts import ClipCheckpoint, LabeledDataset, VisionCheckpoint
from vfm.config import UserError
from vfm.eval.stages import ModelEvaluation, check_class_names
from vfm.stage import Context, Preflight, Ref

if TYPE_CHECKING:
    from vfm.eval.judgement import Judgement, Subject


class FeatureEvaluation(ModelEvaluation):
    """An evaluation of image features alone, with training images of the same classes: any vision encoder fits."""

    # Wider than Evaluation's: what has no text tower can be judged here too.
    models: list[Ref[ClipCheckpoint | VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="whom to judge; left out in a training's `evals`"
    )
    train: Ref[LabeledDataset] = Field(description="labelled images to learn from; its classes are those of `data`")
    data: Ref[LabeledDataset] = Field(description="labelled images to judge on")

    def preflight(self, ctx: Preflight) -> None:
        """Checks that both sets have the same classes, where they are there already."""
        super().preflight(ctx)
        train, data = ctx.artifact(self.train), ctx.artifact(self.data)
        if train and data:
            self.check_classes(train, data)

    def check_classes(self, train: LabeledDataset, data: LabeledDataset) -> None:
        """Refuses two sets of different classes.

        Raises:
            UserError: the class names differ, or cannot be told apart.
        """
        check_class_names(data.class_names, str(self.data))
        if train.class_names != data.class_names:
            one, other = _first_difference(train.class_names, data.class_names)
            raise UserError(f"{self.train} and {self.data} differ in their classes: {one!r} here is {other!r} there")


class LinearProbe(FeatureEvaluation):
    """Logistic regression on frozen features; its L2 penalty is chosen on a part of the training images."""

    kind: Literal["eval.linear_probe"] = "eval.linear_probe"
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="of each class, held out to choose the penalty")
    penalties: list[float] | None = Field(
        None,
        min_length=1,
        description="L2 weights beside the mean loss, on standardised features; default: powers of ten, 1e-6 to 100",
    )
    max_iter: int = Field(1000, ge=1, description="steps of L-BFGS")
    seed: int = Field(0, description="of the split into training and validation")

    @field_validator("penalties")
    @classmethod
    def _positive(cls, penalties: list[float] | None) -> list[float] | None:
        if penalties and min(penalties) <= 0:
            raise ValueError(f"{min(penalties)} is no penalty; they are positive")
        return penalties

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.probes`."""
        from vfm.eval.judges.probes import judge_linear_probe

        train, data = ctx.load(self.train), ctx.load(self.data)
        self.check_classes(train, data)
        sha256, found = judge_linear_probe(
            ctx,
            models,
            train,
            data,
            validation_fraction=self.validation_fraction,
            penalties=self.penalties,
            max_iter=self.max_iter,
            seed=self.seed,
            reading=self._reading(),
        )
        return self._subject("linear_probe", sha256), found


class Knn(FeatureEvaluation):
    """Weighted nearest neighbours on frozen features, as DINO measures them."""

    kind: Literal["eval.knn"] = "eval.knn"
    k: int = Field(20, ge=1, description="neighbours that vote")
    temperature: float = Field(0.07, gt=0, description="a vote weighs exp(cosine / temperature)")

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.probes`."""
        from vfm.eval.judges.probes import judge_knn

        train, data = ctx.load(self.train), ctx.load(self.data)
        self.check_classes(train, data)
        sha256, found = judge_knn(
            ctx, models, train, data, k=self.k, temperature=self.temperature, reading=self._reading()
        )
        return self._subject("knn", sha256), found


def _first_difference(one: list[str], other: list[str]) -> tuple[str, str]:
    for a, b in zip([*one, "(none)"], [*other, "(none)"], strict=False):
        if a != b:
            return a, b
    return one[-1], "(none)"
