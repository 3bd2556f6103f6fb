"""Show the gain of each pipeline step in words, as a chart, and on images that are right only with the step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from vfm.base import UserError, change, did_you_mean, metric_in_words, quantity
from vfm.eval.compare.stages import Ablation, AblationStep
from vfm.interfaces import (
    BarsPanel,
    Comparison,
    Context,
    ImagesPanel,
    Metric,
    PanelImage,
    Report,
    TextPanel,
    load_panels,
)

SHOWN = 2  # images of a step: those of three steps fill a row


@dataclass(frozen=True)
class StepResult:
    """A step, the scores of its models, baseline first, and the comparisons of the others with the baseline."""

    step: AblationStep
    report: Report
    scores: list[Metric]
    comparisons: list[Comparison]

    @property
    def gain(self) -> Comparison:
        """Comparison of the model with the step against the baseline."""
        model = self.step.model or self.comparisons[-1].model
        return next(test for test in self.comparisons if test.model == model)

    @property
    def metric(self) -> str:
        """Name of the metric in words."""
        return self.step.metric_name or metric_in_words(self.scores[0].name)

    @property
    def title(self) -> str:
        """Name of the metric in the report of all steps."""
        return f"{self.step.title}: {self.metric}"

    def score_of(self, model: str) -> Metric:
        """Look up the score of a model."""
        return next(score for score in self.scores if score.model == model)


def compare_steps(config: Ablation, ctx: Context) -> Report:
    """Collect the comparison of each step, and write the panels for the top of the page."""
    results = [load_step(step, ctx.load(step.report)) for step in config.steps]
    brackets = "In brackets: the uncorrected 95 % interval of the gain."
    text = "\n".join(map(in_words, results))
    ctx.panel(TextPanel(title="What each step adds", note=brackets, order=10, front=True, text=text))
    ctx.panel(steps_chart(results))
    images: list[PanelImage] = []
    for result in results:
        if result.gain.difference > 0:
            images += _copied_images(result, ctx)
    if images:
        note = (
            f"Right with the step and wrong without it: up to {SHOWN} images of each step. A pair is right as a whole."
        )
        ctx.panel(ImagesPanel(title="New right answers", note=note, order=11, front=True, pictures=images))
    metrics: list[Metric] = []
    comparisons: list[Comparison] = []
    datasets: list[str] = []
    main: list[str] = []
    for result in results:
        datasets.append(result.report.dataset)
        main.append(result.title)
        for score in result.scores:
            metrics.append(score.model_copy(update={"name": result.title}))
        for test in result.comparisons:
            comparisons.append(test.model_copy(update={"metric": result.title}))
    dataset = ", ".join(dict.fromkeys(datasets))
    return Report.create(
        ctx.directory, task="ablation", dataset=dataset, metrics=metrics, comparisons=comparisons, main=main
    )


def load_step(step: AblationStep, report: Report) -> StepResult:
    """Select the scores of a step from its report.

    Raises:
        UserError: If the report lacks the metric or the model, or has a single model.
    """
    metric = step.metric or report.metrics[0].name
    scores = [score for score in report.metrics if score.name == metric]
    if not scores:
        known = list(dict.fromkeys(score.name for score in report.metrics))
        raise UserError(f"{step.report} has no metric {metric!r}{did_you_mean(metric, known)}")
    comparisons = []
    models = []
    for test in report.comparisons:
        if test.metric == metric:
            comparisons.append(test)
            models.append(test.model)
    if not models:
        raise UserError(f"{step.report}: expected an evaluation of two models or more, got {len(scores)}")
    if step.model and step.model not in models:
        raise UserError(f"{step.report} compares no model {step.model!r}{did_you_mean(step.model, models)}")
    return StepResult(step, report, scores, comparisons)


def in_words(result: StepResult) -> str:
    """Describe the gain of a step and of its controls in two sentences."""
    gain = result.gain
    unit = result.scores[0].unit
    before, after = result.score_of(gain.baseline), result.score_of(gain.model)
    scores = f"{quantity(before.value, unit)} → {quantity(after.value, unit)}"
    ends = f"{change(gain.low, unit)} to {change(gain.high, unit)}"
    text = f"{result.title} {scores}, {change(gain.difference, unit)} ({ends})."
    controls = []
    for test in result.comparisons:
        if test.model != gain.model:
            controls.append(f"{test.model} {change(test.difference, unit)}")
    if not controls:
        return text
    return f"{text} Control: {', '.join(controls)}."


def steps_chart(results: list[StepResult]) -> BarsPanel:
    """Draw the scores of all steps as bars with their intervals, in percent if all of them are shares."""
    labels: list[str] = []
    scores: list[Metric] = []
    for result in results:
        for score in result.scores:
            labels.append(f"{result.step.title}: {score.model}")
            scores.append(score)
    in_percent = all(score.unit == "share" for score in scores)
    scale = 100.0 if in_percent else 1.0
    digits = 1 if in_percent else 4
    values: list[float] = []
    low: list[float] = []
    high: list[float] = []
    for score in scores:
        values.append(round(scale * score.value, digits))
        low.append(scale * score.low)
        high.append(scale * score.high)
    return BarsPanel(
        title="With and without each step",
        note="The first bar of each step is the model without it. Lines are 95 % intervals.",
        order=12,
        front=True,
        labels=labels,
        values=values,
        low=low,
        high=high,
        x_label="%" if in_percent else "",
    )


def _copied_images(result: StepResult, ctx: Context) -> Iterator[PanelImage]:
    """Copy the first images that only the model with the step gets right from the report's sheet."""
    models = (result.gain.baseline, result.gain.model)
    won: list[PanelImage] = []
    for panel in load_panels(result.report.path):
        if isinstance(panel, ImagesPanel) and panel.compares == models:
            won += [image for image in panel.pictures if image.right]
    folder = ctx.directory / "pictures"
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(won[:SHOWN]):
        source = result.report.path / image.file
        copy = folder / f"{result.gain.model}-{number}{source.suffix}"
        shutil.copyfile(source, copy)
        yield PanelImage(file=f"pictures/{copy.name}", caption=f"{result.step.title} · {image.caption}", right=True)
