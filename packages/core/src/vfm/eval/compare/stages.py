"""Configurations of comparisons of trainings by their curves, and of tables over several reports."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.base import Config
from vfm.interfaces import Artifact, ClipCheckpoint, Evaluation, Ref, Report, Stage, VisionCheckpoint


class Curves(Evaluation):
    """Compare trainings by their curves: loss spikes, and the samples each needed to reach the first's final score."""

    version: ClassVar[int] = 2  # since spikes are reported for losses of single steps only
    kind: Literal["eval.curves"] = "eval.curves"
    work: ClassVar[str] = "vfm.eval.compare.curves:compare_curves"

    models: list[Ref[ClipCheckpoint | VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="models whose trainings are compared; the first one's final score is the goal"
    )
    score: str | None = Field(
        None, description="score logged by the trainings' evaluations, such as val/acc1; default: their first, if any"
    )
    window: int = Field(
        51, ge=3, description="preceding steps that a step's loss is compared with; needs log_every: 1 in training"
    )
    num_mads: float = Field(
        3.0, gt=0, description="median absolute deviations above the median from which a loss is a spike"
    )


class SummarisedReport(Config):
    """A report, and which of its scores count in means."""

    report: Ref[Report] = Field(description="an evaluation's report")
    title: str = Field("", description="title of its row; default: the name in `report`")
    group: str = Field("", description="rows of one group are averaged; default: this row is not averaged")
    way: str = Field(
        "", description="what distinguishes rows of one dataset (a task, a language, resizing): each has its own means"
    )
    metrics: list[str] = Field([], description="metrics whose mean is the score; default: the report's main one")


class LeftOut(Config):
    """A dataset that belongs to the list and was not evaluated."""

    title: str = Field(description="its name")
    group: str = Field("", description="the group that it would count in")
    ways: list[str] = Field([], description="the ways in which it would count; default: all")
    why: str = Field(description="why it is missing, and where to get it")


class Summary(Stage):
    """Collect reports in one table, with means over groups that state how many of their datasets they include."""

    version: ClassVar[int] = 3  # since the p-values of the table are corrected for their number
    kind: Literal["eval.summary"] = "eval.summary"
    makes: ClassVar[type[Artifact]] = Report
    work: ClassVar[str] = "vfm.eval.compare.summary:summarise"

    scores: list[SummarisedReport] = Field(min_length=1, description="the reports, in the order of the rows")
    missing: list[LeftOut] = Field([], description="datasets that the means leave out; the table lists them")


STAGES: tuple[type[Stage], ...] = (Curves, Summary)
