"""Print the tables of `mask_claim` over its seeds, and draw its scores against the size of the mask.

uv run vfm run mask_claim && uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_claim plot.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vfm.interfaces import Report
from vfm.statistics import holm

Scores = dict[str, NDArray[np.float64]]  # model -> percent of each seed

MASKS = {"unmasked": 0, "masked_25": 25, "eva": 105 / 256 * 100, "masked_75": 75}
STUDENTS = {"unmasked": "from_unmasked", "eva": "from_eva"} | {name: f"from_{name}" for name in MASKS if "_" in name}


def scores(run: Path, stage: str, metric: str) -> Scores:
    """Read a metric of an evaluation, in percent, by model, in the order of the seeds."""
    values: dict[str, list[float]] = {}
    for folder in sorted((run / "artifacts").glob(f"{stage}@*")):
        for row in Report.load(folder).metrics:
            if row.name == metric:
                values.setdefault(row.model.partition("@")[0], []).append(100 * row.value)
    return {model: np.array(seeds) for model, seeds in values.items()}


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Compute the 95 % t-interval of a mean."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def text(values: NDArray[np.float64], sign: str = "") -> str:
    """Format a mean with its 95 % t-interval."""
    low, high = interval(values)
    return f"{values.mean():{sign}.1f} ({low:.1f} to {high:.1f})"


def table(columns: dict[str, Scores], models: Sequence[str]) -> str:
    """Format the scores of encoders and of their students, a row for each encoder."""
    lines = ["| encoder | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for model in models:
        cells = []
        for column in columns.values():
            row = column.get(STUDENTS.get(model, model))
            row = column.get(model) if row is None else row
            cells.append("" if row is None else text(row))
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(run: Path, *image: Path) -> None:
    """Print the tables, and draw the plot if a file is named."""
    mean = scores(run, "curves", "mean_over_log_samples")
    final = scores(run, "zero_shot", "acc1")
    linear, dense = scores(run, "probe", "lp_acc1"), scores(run, "dense", "dense_miou")
    for column in (mean, final):
        column["of_blank"] = column.pop("from_blank")
    columns = {"student, mean over log samples": mean, "student, at the end": final}
    columns |= {"linear probe, unseen classes": linear, "dense probe, unseen classes": dense}
    print(table(columns, ["scratch", "untrained", "of_blank", *MASKS, "teacher"]))
    end = mean["from_unmasked"] - mean["from_eva"]
    margin = (mean["from_unmasked"] - mean["scratch"]).mean() / 2
    p = scipy.stats.ttest_1samp(end, 0).pvalue
    seeds = ", ".join(f"{value:+.1f}" for value in end)
    print(f"\nend point, from_unmasked - from_eva: {text(end, '+')}, p = {p:.2g}; seeds {seeds}; margin {margin:.1f}")
    low, high = interval(end)
    print("superior" if low > 0 else "equivalent" if -margin < low and high < margin else "not decided")
    second = {
        "from_eva - scratch": mean["from_eva"] - mean["scratch"],
        "from_eva - from_blank": mean["from_eva"] - mean["of_blank"],
        "linear probe, unmasked - eva": linear["unmasked"] - linear["eva"],
        "dense probe, unmasked - eva": dense["unmasked"] - dense["eva"],
    }
    corrected = holm([scipy.stats.ttest_1samp(values, 0).pvalue for values in second.values()])
    for (name, values), p in zip(second.items(), corrected, strict=True):
        print(f"{name}: {text(values, '+')}, p = {p:.2g} by Holm")
    print("gate, linear probe of the teacher - untrained:", text(linear["teacher"] - linear["untrained"], "+"))
    for file in image:
        draw(file, columns)


def draw(file: Path, columns: dict[str, Scores]) -> None:
    """Draw each score against the share of masked patches: means with 95 % t-intervals."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (title, column) in enumerate(columns.items()):
        rows = [column.get(STUDENTS[model], column.get(model)) for model in MASKS]
        x = np.array(list(MASKS.values())) + 0.4 * number  # bars beside each other
        low, high = np.array([interval(row) for row in rows]).T
        means = np.array([row.mean() for row in rows])
        axes.errorbar(x, means, yerr=[means - low, high - means], marker="o", markersize=4, capsize=2, label=title)
    reference = next(iter(columns.values()))["scratch"].mean()
    axes.axhline(reference, color="grey", linewidth=1, linestyle="--", label="student from scratch, mean")
    axes.set(xlabel="masked patches, %", ylabel="%", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
