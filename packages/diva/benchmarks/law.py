"""Print the table of `diva_law` over its seeds, and the law fitted to the cells of all of them.

    uv run vfm run diva_law && uv run --dev python packages/diva/benchmarks/law.py store/runs/diva_law

The last line is the value of `LAW` in `vfm_diva/forecast/law.py`. If a second argument names an image, predicted and
measured gains are drawn there, each seed predicted by the law of the four others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.stats
from matplotlib.figure import Figure

from vfm.interfaces import Report
from vfm_diva.forecast.law import Floats, fit_law

Values = dict[tuple[str, str], list[float]]


def values(run: Path, stage: str) -> Values:
    """Read the metrics of an evaluation in percent, by model and name, a value for each seed."""
    collected: Values = {}
    for folder in sorted((run / "artifacts").glob(f"{stage}@*")):
        for metric in Report.load(folder).metrics:
            key = (metric.model.partition("@")[0], metric.name)
            collected.setdefault(key, []).append(100 * metric.value)
    return collected


def interval(differences: list[float]) -> str:
    """Format the mean of differences with its 95 % t-interval."""
    array = np.array(differences)
    half = scipy.stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return f"{array.mean():+.1f} ({array.mean() - half:.1f} to {array.mean() + half:.1f})"


def gap(collected: Values, arm: str, base: str, name: str) -> str:
    """Format the difference of two models over the seeds."""
    return interval([a - b for a, b in zip(collected[arm, name], collected[base, name], strict=True)])


def main(run: Path, *image: Path) -> None:
    """Print the tables."""
    pairs, zero_shot = values(run, "mmvp"), values(run, "zero_shot")
    patterns = [name for model, name in pairs if model == "clip" and name.startswith("pair_accuracy/")]
    short = [name.partition("/")[2] for name in patterns]
    print(
        "| | all pairs | to `clip` | " + " | ".join(short) + " | zero-shot |\n|---|--:|---|" + "--:|" * (len(short) + 1)
    )
    for arm in dict.fromkeys(model for model, _ in pairs):
        cells = [f"{np.mean(pairs[arm, name]):.1f}" for name in patterns]
        acc = f"{np.mean(zero_shot[arm, 'acc1']):.1f}" if (arm, "acc1") in zero_shot else ""
        base = "" if arm == "clip" else gap(pairs, arm, "clip", "pair_accuracy")
        print(f"| `{arm}` | {np.mean(pairs[arm, 'pair_accuracy']):.1f} | {base} | {' | '.join(cells)} | {acc} |")
    ends = [a - b for a, b in zip(pairs["feedback", "pair_accuracy"], pairs["clip", "pair_accuracy"], strict=True)]
    p = scipy.stats.ttest_1samp(ends, 0).pvalue
    print(f"\nend point: {', '.join(f'{end:+.1f}' for end in ends)}; mean {interval(ends)}, p = {p:.2g}")
    print("zero-shot, feedback minus clip:", gap(zero_shot, "feedback", "clip", "acc1"))
    for name, pattern in zip(patterns, short, strict=True):
        to_clip, to_feedback = (gap(pairs, "no_position", base, name) for base in ("clip", "feedback"))
        print(f"withheld position, {pattern}: to clip {to_clip}, to feedback {to_feedback}")
    tables = [pq.read_table(folder / "cells.parquet") for folder in sorted((run / "artifacts").glob("law@*"))]
    gains_of_law = []
    for table in tables:
        x, y = (table[column].to_numpy() for column in ("exposure", "gain"))
        law = fit_law(x, y)
        error = float(np.abs(table["predicted"].to_numpy() - y).mean())
        half = np.arange(len(y)) % 2 == 0
        by_mean = np.where(half, y[~half].mean(), y[half].mean())
        gains_of_law.append(100 * (np.abs(by_mean - y).mean() - error))
        mean_error = 100 * np.abs(by_mean - y).mean()
        print(f"law: slope {law.slope:.2f}, error {100 * error:.1f}, of the mean {mean_error:.1f} points")
    p = scipy.stats.ttest_1samp(gains_of_law, 0).pvalue
    print(f"error of the mean minus error of the law: {interval(gains_of_law)} points, p = {p:.2g}")
    cells = pa.concat_tables(tables)
    x, y = (cells[column].to_numpy() for column in ("exposure", "gain"))
    seeds = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    guesses, errors, widths = (np.empty(len(y)) for _ in range(3))
    for seed in range(len(tables)):
        own = seeds == seed
        predicted, widths[own] = fit_law(x[~own], y[~own]).predict(x[own])
        guesses[own], errors[own] = predicted, np.abs(predicted - y[own])
        total, measured = 100 * predicted.mean(), 100 * y[own].mean()
        print(
            f"seed {seed + 1} by the law of the four others: mean gain {total:.1f} predicted, {measured:.1f} measured"
        )
    inside = 100 * np.mean(errors <= widths)
    print(f"mean absolute error {100 * errors.mean():.1f} points; {inside:.0f} % of the gains in the 95 % interval")
    print(fit_law(x, y))
    for file in image:
        draw(file, cells["pattern"].to_pylist(), 100 * guesses, 100 * y)


def draw(file: Path, patterns: list[str], predicted: Floats, measured: Floats) -> None:
    """Draw predicted against measured gains, a colour for each attribute."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for pattern in dict.fromkeys(patterns):
        chosen = np.array(patterns) == pattern
        axes.scatter(predicted[chosen], measured[chosen], s=16, label=pattern, alpha=0.8, linewidths=0)
    ends = [min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.set(xlabel="predicted gain, points of pair accuracy", ylabel="measured gain, points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
