"""Report predicted and measured gains of feedback, with the error of the prediction (`diva.law`)."""

# C cells: an attribute in one arm each

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vfm.plugin import Context, LinesPanel, Metric, Report, Series, TablePanel, UserError, short_name
from vfm.statistics import bootstrap_interval
from vfm_diva.forecast.law import Floats, explained_share, exposure, fit_law, predict_held_out
from vfm_diva.forecast.stages import DivaLaw, LawArm

NUM_RESAMPLES = 2000
DIAGONAL = (-0.2, 0.8)  # gains that the chart shows


@dataclass(frozen=True)
class Cell:
    """An attribute in an arm of the experiment.

    It has the preference and the accuracy before the feedback, and the measured gain, from 0 to 1 each.
    """

    arm: str
    pattern: str
    preference: float
    accuracy: float
    gain: float


def compare_law(config: DivaLaw, ctx: Context) -> Report:
    """Run `diva.law`.

    Raises:
        UserError: If a report lacks a model, or an attribute of the predictions.
    """
    measured = ctx.load(config.measured)
    accuracies = {(metric.model, metric.name): metric.value for metric in measured.metrics}
    cells: list[Cell] = []
    in_first_half: list[bool] = []
    for row, arm in enumerate(config.arms):
        for column, cell in enumerate(_cells(arm, ctx.load(arm.predicted), accuracies, config.measured)):
            cells.append(cell)
            # Halves alternate like the fields of a chessboard: every arm and every attribute is in both.
            in_first_half.append((row + column) % 2 == 0)
    in_first = np.array(in_first_half)
    facts = np.array([(cell.preference, cell.accuracy, cell.gain) for cell in cells]).reshape(-1, 3)
    x = exposure(facts[:, 0], facts[:, 1])
    gains = facts[:, 2]
    try:
        predicted = predict_held_out(x, gains, in_first)
    except ValueError as error:
        raise UserError(f"arms: {error}") from None
    by_mean = np.where(in_first, gains[~in_first].mean(), gains[in_first].mean())
    table = pa.Table.from_pylist(list(map(vars, cells)))
    table = table.append_column("exposure", pa.array(x)).append_column("predicted", pa.array(predicted))
    pq.write_table(table, ctx.directory / "cells.parquet", write_page_checksum=True)
    metrics = [
        _error("mean", by_mean, gains), _error("law", predicted, gains), _explained(predicted, gains), _slope(x, gains),
    ]  # fmt: skip
    ctx.panel(_chart(predicted, gains, short_name(config.name)))
    ctx.panel(_table(cells, predicted))
    return Report.create(ctx.directory, task="diva_law", dataset=measured.dataset, metrics=metrics)


def _cells(arm: LawArm, predicted: Report, accuracies: dict[tuple[str, str], float], measured: str) -> list[Cell]:
    """Collect the cells of an arm, in the order of the prediction's attributes."""
    known = {metric.name: metric.value for metric in predicted.metrics}
    cells = []
    for name, preference in known.items():
        if not name.startswith("preference/"):
            continue
        pattern = name.removeprefix("preference/")
        metric = f"pair_accuracy/{pattern}"
        for model in map(short_name, (arm.before, arm.after)):
            if (model, metric) not in accuracies:
                raise UserError(
                    f"{measured}: expected {metric} of {model}, got none: evaluate it on pairs with {pattern}"
                )
        before = accuracies[short_name(arm.before), metric]
        after = accuracies[short_name(arm.after), metric]
        accuracy = known[f"accuracy/{pattern}"]
        cells.append(Cell(short_name(arm.after), pattern, preference, accuracy, after - before))
    return cells


def _error(model: str, predicted: Floats, gains: Floats) -> Metric:
    """Compute the mean absolute error of held-out predictions."""
    errors = np.abs(predicted - gains)
    low, high = bootstrap_interval(errors)
    return Metric(name="error", value=float(errors.mean()), n=len(errors), low=low, high=high, model=model)


def _explained(predicted: Floats, gains: Floats) -> Metric:
    """Compute the share of the gains' variance that held-out predictions explain, with a bootstrap over the cells."""
    draws = np.random.default_rng(0).integers(0, len(gains), (NUM_RESAMPLES, len(gains)))
    low, high = np.nanquantile([explained_share(predicted[draw], gains[draw]) for draw in draws], [0.025, 0.975])
    value = explained_share(predicted, gains)
    return Metric(name="explained", value=value, n=len(gains), low=float(low), high=float(high), model="law")


def _slope(exposures: Floats, gains: Floats) -> Metric:
    """Fit the slope of the law on all cells, with its t-interval."""
    law = fit_law(exposures, gains)
    half = law.slope_error
    return Metric(
        name="slope", value=law.slope, unit="gain / exposure", n=len(gains), low=law.slope - half,
        high=law.slope + half, model="law",
    )  # fmt: skip


def _chart(predicted: Floats, gains: Floats, curve: str) -> LinesPanel:
    x = (100 * predicted).tolist()
    y = (100 * gains).tolist()
    ends = [100 * end for end in DIAGONAL]
    return LinesPanel(
        title="Predicted and measured gain",
        note="Each mark is an attribute in one arm, predicted by the law fitted on the other half of the cells.",
        order=10,
        curve=curve,
        series=[Series(name="cells", x=x, y=y, marks=True), Series(name="equal", x=ends, y=list(ends))],
        x_label="predicted gain, points",
        y_label="measured gain, points",
    )


def _table(cells: list[Cell], predicted: Floats) -> TablePanel:
    rows: list[list[str | float | int | None]] = []
    for cell, guess in zip(cells, predicted.tolist(), strict=True):
        percentages = [round(100 * value, 1) for value in (cell.preference, cell.accuracy, guess, cell.gain)]
        rows.append([cell.arm, cell.pattern, *percentages])
    return TablePanel(
        title="Cells",
        note="Preference of the generator and accuracy of CLIP before the feedback, on other pairs than the gain.",
        order=11,
        columns=["arm", "attribute", "preference, %", "pairs before, %", "predicted gain", "measured gain"],
        rows=rows,
    )
