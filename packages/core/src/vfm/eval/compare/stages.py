"""Configurations that compare training runs by their curves, and that collect several reports in one table."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.base import Config
from vfm.interfaces import Artifact, ClipCheckpoint, Evaluation, Ref, Report, Stage, VisionCheckpoint


class CurveComparison(Evaluation):
    """Compare training runs by loss spikes, the samples needed to reach the first run's final score, and mean scores.

    The mean is over the logarithm of the samples, so that learning early counts as much as ending high.
    """

    version: ClassVar[int] = 3  # since the mean score over training is reported
    kind: Literal["eval.curves"] = "eval.curves"
    work: ClassVar[str] = "vfm.eval.compare.curves:compare_curves"

    models: list[Ref[ClipCheckpoint | VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="models whose training runs are compared; the final score of the first is the goal"
    )
    score: str | None = Field(
        None, description="score logged during training, such as val/acc1; default: the first one, if any"
    )
    window: int = Field(
        51, ge=3, description="number of preceding steps that a loss is compared with; needs log_every: 1 in training"
    )
    num_mads: float = Field(
        3.0, gt=0, description="a loss this many median absolute deviations above the median is a spike"
    )


class SummarisedReport(Config):
    """A report, and which of its scores are averaged."""

    report: Ref[Report] = Field(description="an evaluation's report")
    title: str = Field("", description="title of the row; default: the name in `report`")
    group: str = Field("", description="rows of the same group are averaged; default: this row is not averaged")
    way: str = Field(
        "", description="distinguishes rows of the same dataset (task, language, resizing); each way has separate means"
    )
    metrics: list[str] = Field([], description="metrics whose mean is the score; default: the report's main metric")


class MissingDataset(Config):
    """A dataset that belongs to the list but was not evaluated."""

    title: str = Field(description="name of the dataset")
    group: str = Field("", description="the group that it would count in")
    ways: list[str] = Field([], description="the ways in which it would count; default: all")
    why: str = Field(description="why it is missing, and where to get it")


class ReportSummary(Stage):
    """Collect reports in one table, with group means that state how many of their datasets they include."""

    version: ClassVar[int] = 3  # since the p-values of the table are corrected for the number of tests
    kind: Literal["eval.summary"] = "eval.summary"
    makes: ClassVar[type[Artifact]] = Report
    work: ClassVar[str] = "vfm.eval.compare.summary:summarise"

    scores: list[SummarisedReport] = Field(min_length=1, description="the reports, in the order of the rows")
    missing: list[MissingDataset] = Field([], description="datasets that the means leave out; the table lists them")


class AblationStep(Config):
    """A step of a pipeline.

    It has one evaluation of a model without the step, and of a model with it.
    """

    title: str = Field(description="what the step does, such as 'balanced by MetaCLIP'")
    report: Ref[Report] = Field(
        description="evaluation that compares them; its first model is the baseline, the models between are controls"
    )
    model: str = Field("", description="model with the step; default: the last one that the report compares")
    metric: str = Field("", description="metric of the report; default: its main one")
    metric_name: str = Field("", description="the metric in words, such as 'zero-shot accuracy'; default: by its name")


class Ablation(Stage):
    """Show the gain of each step of a pipeline at the top of the page.

    The gains are in words, as a chart, and on example images.
    """

    kind: Literal["eval.ablation"] = "eval.ablation"
    makes: ClassVar[type[Artifact]] = Report
    work: ClassVar[str] = "vfm.eval.compare.ablation:compare_steps"

    steps: list[AblationStep] = Field(min_length=1, description="the steps, in their order")
