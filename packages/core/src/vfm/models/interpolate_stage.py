"""The stage `models.interpolate`: weights between two models of one architecture (WiSE-FT), and a curve over them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint
from vfm.interfaces import AnyEvaluation, check_evals
from vfm.stage import Context, Preflight, Ref, Stage

if TYPE_CHECKING:
    from vfm.models.clip import ClipModel
    from vfm.panels import LinesPanel

Alpha = Annotated[float, Field(ge=0, le=1)]


class Interpolate(Stage):
    """Mixes the weights of a model and of what fine-tuning made of it, which keeps more of what the first one could."""

    kind: Literal["models.interpolate"] = "models.interpolate"
    start: Ref[ClipCheckpoint] = Field(description="the model at alpha 0, e.g. the pretrained one")
    end: Ref[ClipCheckpoint] = Field(description="the model at alpha 1, e.g. the fine-tuned one")
    alpha: Alpha = Field(0.5, description="where on the line the model lies that is made")
    alphas: list[Alpha] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0], min_length=1, description="where on the line the `evals` judge, for a curve"
    )
    evals: list[AnyEvaluation] = Field([], description="evaluations, without `models`, of the models on the line")

    @model_validator(mode="after")
    def _evals_fit(self) -> Interpolate:
        check_evals(self.evals, self)
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The two models are of one architecture, where both are there already."""
        from vfm.models.clip import blueprint
        from vfm.models.interpolation import check_alike

        start, end = ctx.artifact(self.start), ctx.artifact(self.end)
        if start and end:
            check_alike(blueprint(start), blueprint(end))

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Judges the line where there are `evals`, and saves the model at `alpha`."""
        from vfm.models.clip import load_clip, save_clip
        from vfm.models.interpolation import interpolate

        start, end = load_clip(ctx.load(self.start)), load_clip(ctx.load(self.end))
        for panel in self._curves(ctx, start, end) if self.evals else ():
            ctx.panel(panel)
        mixed = interpolate(start, end, self.alpha)
        mixed.name = f"{start.name} to {end.name}, {self.alpha:g}" if end.name != start.name else start.name
        return save_clip(mixed, ctx.directory)

    def _curves(self, ctx: Context, start: ClipModel, end: ClipModel) -> Iterator[LinesPanel]:
        """Each evaluation's scores along the line, which are also kept in `line.jsonl`."""
        from vfm.models.interpolation import interpolate
        from vfm.panels import LinesPanel, Series
        from vfm.train.dist import resolve_device
        from vfm.train.evals import judge

        device, alphas = resolve_device(self.runtime), sorted({*self.alphas, self.alpha})
        found: dict[str, list[dict[str, float]]] = {evaluation.name: [] for evaluation in self.evals}
        with (ctx.directory / "line.jsonl").open("w", encoding="utf-8") as file:
            for place, alpha in enumerate(alphas):
                for evaluation, scores in judge(ctx, self.evals, interpolate(start, end, alpha).to(device)):
                    found[evaluation.name].append(scores)
                    file.write(json.dumps({"alpha": alpha, "eval": evaluation.name, **scores}) + "\n")
                ctx.progress(place + 1, len(alphas), "models")
        note = f"From '{self.start}' (0) to '{self.end}' (1). The model at {self.alpha:g} is what this stage makes."
        for order, (name, line) in enumerate(found.items(), start=10):
            shown = [score for score in line[0] if "/" not in score]
            series = [Series(name=score, x=alphas, y=[scores[score] for scores in line]) for score in shown]
            title = f"Between two models: {name.replace('_', ' ')}"
            yield LinesPanel(title=title, note=note, order=order, series=series, x_label="alpha", y_label="score")
        if len(found) > 1:
            yield _against(found)


def _against(found: Mapping[str, Sequence[Mapping[str, float]]]) -> LinesPanel:
    """The first evaluation's first score beside that of each other one, a point for each model on the line."""
    from vfm.panels import LinesPanel, Series

    def first_score(name: str) -> tuple[str, list[float]]:
        score = next(iter(found[name][0]))
        return f"{name} {score}".replace("_", " "), [scores[score] for scores in found[name]]

    base, *others = found
    x_label, x = first_score(base)
    shown = [first_score(name) for name in others]
    return LinesPanel(
        title="What is gained and what is kept",
        note="Each point is one of the models between the two, in the order of alpha.",
        order=9,
        series=[Series(name=name, x=x, y=[*y]) for name, y in shown],
        x_label=x_label,
        y_label="score",
    )
