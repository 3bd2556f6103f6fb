"""Base classes of evaluations. Subclass `ModelEvaluation`, or `FeatureEvaluation` for a probe."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from vfm.base import INCIDENTAL, UserError, load_function
from vfm.data.prompts.templates import check_templates
from vfm.interfaces import (
    ClipCheckpoint,
    Context,
    Evaluated,
    Evaluation,
    LabeledDataset,
    Ref,
    Score,
    TaggedImages,
    VisionCheckpoint,
)

GROUPS = "vfm.eval.encode.sample_groups"
ResizeMode = Literal["shortest", "longest", "squash"]
Templates = Annotated[list[str], AfterValidator(check_templates)]
"""Prompts with a `{}` for the class name."""


@dataclass(frozen=True)
class ReadSettings:
    """How an evaluation reads a dataset.

    Attributes:
        batch_size: Number of images per forward pass.
        max_bad_fraction: Tolerated fraction of samples that cannot be used.
        threads: Number of threads that decode images.
    """

    batch_size: int = 64
    max_bad_fraction: float = 0.05
    threads: int = 1

    def check_bad(self, bad: Counter[str], total: int, items: str = "samples", first: object = None) -> None:
        """Check the number of bad samples of a dataset.

        Args:
            bad: Number of bad samples by reason.
            total: Number of all samples.
            items: Name of the samples in the message.
            first: The first bad sample, for the message.

        Raises:
            UserError: If more than `max_bad_fraction` are bad, or all.
        """
        # A dataset without a good sample has no score, whatever the tolerated fraction is.
        if bad.total() > self.max_bad_fraction * total or bad.total() == total:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(bad.items())) or "it is empty"
            limit = f"max_bad_fraction is {self.max_bad_fraction}"
            where = f"; the first is {first}" if first else ""
            raise UserError(f"{bad.total()} of {total} {items} cannot be used ({limit}): {reasons}{where}")


def values_of(scores: Iterable[Score]) -> dict[str, float]:
    """Map each metric to its value."""
    return {score.metric: score.value for score in scores}


class ModelEvaluation(Evaluation):
    """Evaluate models on one dataset.

    The dataset is encoded with each model, all models are scored on the same items, and a report is written. A subclass
    names its function in `evaluator`, or overrides `evaluate`. Scores, paired tests, predictions and result files are
    written for it. It can also evaluate a model during training (`evaluation.tasks` of a training stage). With
    `in_processes`, several processes share the encoding (`encode_dataset`, `encode_texts`). Only rank 0 then has the
    features of all images, so `vfm.train.leave_to_first` leaves the scoring to it.
    """

    version: ClassVar[int] = 3  # since checkpoint_sha256 covers the configuration too
    work: ClassVar[str] = "vfm.eval.encode.evaluation:evaluate_models"
    evaluator: ClassVar[str] = ""  # "package.module:function", (config, Context, encoders by name) -> Evaluated
    task: ClassVar[str] = ""  # its name in result files; default: the second half of `kind`

    data: Ref[Any] = Field(description="dataset to evaluate on")
    micro_batch_size: Annotated[int, INCIDENTAL] = Field(64, ge=1, description="images per forward pass")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of samples that cannot be read")
    resize_mode: ResizeMode | None = Field(
        None,
        description="how images that are not square are resized: shortest (then centre crop), longest (then padded),"
        " squash; default: as each model was trained",
    )
    by: str | None = Field(
        None, description="column of `data`: accuracies and recalls are also reported for each of its values"
    )

    @property
    def task_name(self) -> str:
        """Name of the task in result files."""
        return self.task or self.kind.rsplit(".", 1)[-1]

    @property
    def reading(self) -> ReadSettings:
        """Batch size, tolerated bad samples and threads for reading `data`."""
        return ReadSettings(self.micro_batch_size, self.max_bad_fraction, max(1, self.runtime.num_workers))

    def evaluate(self, ctx: Context, encoders: Mapping[str, Any]) -> Evaluated:
        """Evaluate loaded models on the same items with the function named by `evaluator`.

        Args:
            ctx: Loads the data (`ctx.load(self.data)`) and takes panels, progress and bad samples.
            encoders: Models by name. They have `encode_images` (`vfm.models.ImageEncoder`), CLIP models `encode_texts`.
        """
        source = None
        if self.by:
            source = load_function(f"{GROUPS}:open_groups")(ctx, ctx.load(self.data), self.by)
        evaluated: Evaluated = load_function(self.evaluator)(self, ctx, encoders)
        if source is not None:
            evaluated = load_function(f"{GROUPS}:with_groups")(ctx, evaluated, source, self.by)
        return evaluated

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        """Compute the value of each metric, without intervals, for a model in training."""
        return values_of(self.scored(ctx, encoder))

    def scored(self, ctx: Context, encoder: Any) -> Sequence[Score]:
        """Score a model in training. The scores can be compared with another model's on the same items."""
        return self.evaluate(ctx, {"model": encoder}).results["model"].scores


class EncodedEvaluation(ModelEvaluation):
    """Evaluate image and text features (`encode_images`, `encode_texts`), computed in fp32 or bf16."""

    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="precision of the forward pass; bf16 is faster where the device supports it, but rounds"
    )

    def scored(self, ctx: Context, encoder: Any) -> Sequence[Score]:
        """Score a model in training, with the configured precision."""
        if self.precision != "fp32":
            encoder = replace(encoder, precision=self.precision)
        return super().scored(ctx, encoder)


class FeatureEvaluation(EncodedEvaluation):
    """Evaluate image features with the help of training images of the same classes. Any vision encoder can be used."""

    version: ClassVar[int] = 4  # since LARS adapts its rates, and average precision has an unbiased chance and interval
    checks: ClassVar[str] = "vfm.eval.classify.checks:check_feature_evaluation"

    # Wider than Evaluation's: models without a text tower can be evaluated too.
    models: list[Ref[ClipCheckpoint | VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="models to evaluate; omitted in `evaluation.tasks`"
    )
    train: Ref[LabeledDataset | TaggedImages] = Field(
        description="training images, with one class or several labels each, the same as in `data`"
    )
    data: Ref[LabeledDataset | TaggedImages] = Field(description="images to evaluate on")
