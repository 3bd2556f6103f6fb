"""The stage `eval.curves`: how trainings went, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint, Report, VisionCheckpoint
from vfm.config import UserError, did_you_mean
from vfm.eval.stages import check_named_once, short_name
from vfm.interfaces import Evaluation
from vfm.stage import Context, Preflight, Ref

if TYPE_CHECKING:
    from vfm.artifacts import Metric
    from vfm.eval.curves import Trail
    from vfm.panels import Panel


class Curves(Evaluation):
    """Compares trainings by their curves: loss spikes, and the samples each took to the first one's final score."""

    version: ClassVar[int] = 2  # since spikes are told of single steps alone

    kind: Literal["eval.curves"] = "eval.curves"
    models: list[Ref[ClipCheckpoint | VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="what the trainings made; the first one's final score is the goal"
    )
    score: str | None = Field(
        None, description="of the trainings' `evals`, such as val/acc1; default: the first that they have, if any"
    )
    window: int = Field(51, ge=3, description="steps before, with which a step's loss is compared; wants log_every: 1")
    num_mads: float = Field(3.0, gt=0, description="median absolute deviations above the median that make a spike")

    def preflight(self, ctx: Preflight) -> None:
        """Refuses a training that is named twice: its curves would take the other's place."""
        check_named_once(self.models)

    def run(self, ctx: Context) -> Report:
        """Reads each training's `metrics.jsonl`; leaves its curves over one another."""
        from vfm.eval.curves import Trail
        from vfm.train.curves import METRICS_FILE

        trails = {}
        for ref in self.models:
            file = ctx.load(ref).path / METRICS_FILE
            if not file.is_file():
                raise UserError(f"{ref}: has no {METRICS_FILE}; it was not trained here")
            trails[short_name(ref)] = Trail.read(file)
        score = self._score(next(iter(trails.values())))
        metrics = [metric for name, trail in trails.items() for metric in self._spikes(ctx, name, trail)]
        if score:
            goal = next(iter(trails.values())).scores[score][-1][1]
            metrics += self._samples(trails, score, goal)
        for panel in _panels(trails, score):
            ctx.panel(panel)
        return Report.create(ctx.directory, task="curves", dataset=score or "train/loss", metrics=metrics)

    def _score(self, first: Trail) -> str | None:
        if self.score and self.score not in first.scores:
            raise UserError(
                f"score: {self.models[0]} did not measure {self.score}{did_you_mean(self.score, first.scores)}"
            )
        return self.score or next(iter(first.scores), None)

    def _spikes(self, ctx: Context, name: str, trail: Trail) -> list[Metric]:
        """The share of the steps that are spikes; nothing where the window is longer, or not every step was logged."""
        from vfm.artifacts import Metric
        from vfm.eval.curves import loss_spikes
        from vfm.eval.statistics import wilson_interval

        if trail.steps != list(range(1, len(trail.steps) + 1)):
            ctx.warn(f"{name}: no loss_spikes: means over several steps hide them; train with log_every: 1")
            return []
        spikes = loss_spikes(trail.loss, window=self.window, num_mads=self.num_mads)
        if not len(spikes):
            return []
        low, high = wilson_interval(int(spikes.sum()), len(spikes))
        return [Metric(name="loss_spikes", value=float(spikes.mean()), n=len(spikes), low=low, high=high, model=name)]

    def _samples(self, trails: dict[str, Trail], score: str, goal: float) -> list[Metric]:
        """What each training took to the goal; a single training's number has no interval, seeds give one."""
        from vfm.artifacts import Metric
        from vfm.eval.curves import samples_to_reach

        metrics = []
        for name, trail in trails.items():
            samples = samples_to_reach(trail.scores.get(score, []), goal)
            if samples is not None:
                at = {"value": samples, "low": samples, "high": samples}
                metrics.append(Metric(name="samples_to_reach", unit="samples", n=1, model=name, **at))
        return metrics


def _panels(trails: dict[str, Trail], score: str | None) -> list[Panel]:
    from vfm.panels import LinesPanel, Series

    loss = [Series(name=name, x=list(map(float, t.samples)), y=t.loss) for name, t in trails.items()]
    panels: list[Panel] = [LinesPanel(title="Losses", order=10, x_label="samples", y_label="loss", series=loss)]
    if score:
        curves = {name: trail.scores.get(score, []) for name, trail in trails.items()}
        series = [Series(name=name, x=[float(s) for s, _ in c], y=[y for _, y in c]) for name, c in curves.items() if c]
        panels.append(LinesPanel(title="Scores", order=11, x_label="samples", y_label=score, series=series))
    return panels
