"""Print the table of `diva_law` over its seeds, and the law fitted to the cells of all of them.

    uv run vfm run diva_law && uv run --dev python packages/diva/benchmarks/law.py store/runs/diva_law

The last line is the value of `LAW` in `vfm_diva/forecast/law.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.stats

from vfm.interfaces import Report
from vfm_diva.forecast.law import fit_law

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


def main(run: Path) -> None:
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
    errors = []
    for table in tables:
        x, y = (table[column].to_numpy() for column in ("exposure", "gain"))
        law = fit_law(x, y)
        error = float(np.abs(table["predicted"].to_numpy() - y).mean())
        half = np.arange(len(y)) % 2 == 0
        by_mean = np.where(half, y[~half].mean(), y[half].mean())
        errors.append(100 * (np.abs(by_mean - y).mean() - error))
        mean_error = 100 * np.abs(by_mean - y).mean()
        print(f"law: slope {law.slope:.2f}, error {100 * error:.1f}, of the mean {mean_error:.1f} points")
    p = scipy.stats.ttest_1samp(errors, 0).pvalue
    print(f"error of the mean minus error of the law: {interval(errors)} points, p = {p:.2g}")
    cells = pa.concat_tables(tables)
    x, y = (cells[column].to_numpy() for column in ("exposure", "gain"))
    seeds = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    left_out = np.concatenate(
        [
            fit_law(x[seeds != seed], y[seeds != seed]).slope * x[seeds == seed] - y[seeds == seed]
            for seed in range(len(tables))
        ]
    )
    print(f"a seed predicted by the four others: mean absolute error {100 * np.abs(left_out).mean():.1f} points")
    print(fit_law(x, y))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
