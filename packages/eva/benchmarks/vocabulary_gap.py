"""Print the end points of the recipes `vocabulary_claim` and `vocabulary_claim_matched`, by start.

    uv run --dev python packages/eva/benchmarks/vocabulary_gap.py [--store store]
    uv run --dev python packages/eva/benchmarks/vocabulary_gap.py --matched store/runs/vocabulary_claim_matched

The first command runs the recipe, whose finished stages are cached, and prints the gap between 12 and 120 classes and
the gap between frequent and rare classes. The second one reads a run whose detectors are evaluated along training, and
prints how much more AP the classes have at the same AP of objects. Student's paired t over the seeds. `--image FILE`
draws the curves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from mask_claim import interval
from mask_scores import Floats
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

import vfm
from vfm.statistics import detectable_difference, paired_t, t_interval

STARTS = ("eva", "random")
AP = Mapping[tuple[str, str, str], float]
"""Average precision in per cent by (report with its seed, model without it, metric)."""
Curve = Mapping[str, Floats]
"""Average precision in per cent at each evaluation of a training run, by metric."""

OBJECTS = "val/objects/box_ap"
MATCHED = {"val/box_ap": "AP of all classes", "val/box_ap_freq_r": "AP of the rare classes"}  # the end point first
MARGIN = 2.0  # points of AP within which the starts count as equal


def gaps(ap: AP, start: str, seed: str) -> dict[str, float]:
    """Compute the two end points of a start and seed."""
    few, many = f"few_classes@{seed}", f"many_classes@{seed}"
    frequent, rare = (ap[many, f"{start}_120", f"box_ap_freq_{band}"] for band in "fr")
    return {
        "AP(12) - AP(120)": ap[few, f"{start}_12", "box_ap"] - ap[many, f"{start}_120", "box_ap"],
        "AP(frequent) - AP(rare)": frequent - rare,
    }


def read_curve(training: Path) -> Curve:
    """Read the scores of a training run, from a third of its steps on."""
    by_step: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (training / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        if line["split"] == "val":
            by_step.setdefault(line["step"], {}).update(line)
    last = max(by_step)
    steps = sorted(step for step in by_step if 3 * step >= last)
    return {name: np.array([100 * by_step[step][name] for step in steps]) for name in (OBJECTS, *MATCHED)}


def increasing(curve: Curve, metric: str) -> tuple[Floats, Floats]:
    """Make a curve over the AP of objects increasing.

    Isotonic regression makes both scores monotone over the steps. Steps of the same AP of objects become one point
    with their mean score.
    """
    objects, scores = (isotonic_regression(curve[name]).x for name in (OBJECTS, metric))
    places, index = np.unique(objects, return_inverse=True)
    return places, np.bincount(index, scores) / np.bincount(index)


def matched_difference(first: Curve, second: Curve, metric: str) -> tuple[float, float, float]:
    """Compute how much higher a score of the first curve is than of the second at the same AP of objects.

    The difference is averaged over the range that both cover. Between evaluations the curves are linear.

    Returns:
        The difference, and the ends of the range.

    Raises:
        ValueError: If they have no common range.
    """
    curves = [increasing(curve, metric) for curve in (first, second)]
    low, high = max(places[0] for places, _ in curves), min(places[-1] for places, _ in curves)
    if low >= high:
        raise ValueError(f"expected curves that share a range of AP of objects, got {low:.1f} to {high:.1f}")
    grid = np.linspace(low, high, 1001)
    one, other = (np.interp(grid, places, scores) for places, scores in curves)
    return float((one - other).mean()), low, high


def print_matched(run: Path) -> dict[str, list[Curve]]:
    """Print the last scores and the differences at the same AP of objects, and list all curves by start."""
    trained = (folder for folder in (run / "artifacts").glob("random_120@*") if folder.exists())
    seeds = sorted(folder.name.partition("@")[2] for folder in trained)
    curves = {start: [read_curve(run / "artifacts" / f"{start}_120@{seed}") for seed in seeds] for start in STARTS}
    names = {OBJECTS: "AP of objects", **MATCHED}
    print("| after the last step, % | from EVA | random weights |\n|---|---|---|")
    last = {key: [np.array([curve[key][-1] for curve in curves[start]]) for start in STARTS] for key in names}
    for key, scores in last.items():
        print(f"| {names[key]} | {' | '.join(map(interval, scores))} |")
    print(f"\n| EVA minus random weights | points | seeds {', '.join(seeds)} | p | standard deviation | power 0.8 |")
    print("|---|---|---|--:|--:|--:|")
    for key, (eva, random) in last.items():
        print(f"| {names[key]}, after the last step | {cells(eva - random)} |")
    for key in MATCHED:
        found = [matched_difference(eva, random, key) for eva, random in zip(*curves.values(), strict=True)]
        differences = np.array([difference for difference, _, _ in found])
        print(f"| {names[key]}, at the same AP of objects: {decide(differences)} | {cells(differences)} |")
    print(f"\ncommon ranges: {', '.join(f'{low:.1f} to {high:.1f}' for _, low, high in found)}")
    return curves


def decide(differences: Floats) -> str:
    """Decide by the rule in the recipe."""
    low, high = t_interval(differences)
    if low > -MARGIN and high < MARGIN:
        return "equal"
    return "different" if low > 0 or high < 0 else "open"


def cells(differences: Floats) -> str:
    """Format the mean, the value of each seed, p, the standard deviation, and the difference with a power of 0.8."""
    (low, high), p = paired_t(np.zeros_like(differences), differences)
    shown = detectable_difference((low, high), num_seeds=len(differences))
    by_seed = ", ".join(f"{value:+.1f}" for value in differences)
    return f"{interval(differences, signed=True)} | {by_seed} | {p:.2g} | {differences.std(ddof=1):.1f} | {shown:.1f}"


def draw(file: Path, curves: Mapping[str, list[Curve]]) -> None:
    """Draw the AP of classes against the AP of objects, a line for each seed."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (metric, name) in zip(figure.subplots(1, 2), MATCHED.items(), strict=True):
        for start, colour, label in (("eva", "tab:blue", "from EVA"), ("random", "tab:grey", "random weights")):
            for number, curve in enumerate(curves[start]):
                axes.plot(
                    curve[OBJECTS], curve[metric], color=colour, marker=".", linewidth=1, label=label * (number == 0)
                )
        axes.set(xlabel="AP of objects, classes ignored (%)", ylabel=f"{name} (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(file, dpi=120)


def print_gaps(store: str) -> None:
    """Run `vocabulary_claim`, and print its gaps for each start and seed."""
    run = vfm.run("vocabulary_claim", store=store)
    rows = run.table().to_pylist()
    ap = {(row["report"], row["model"].partition("@")[0], row["metric"]): 100 * row["value"] for row in rows}
    seeds = sorted({report.partition("@")[2] for report, _, _ in ap})
    found = {start: [gaps(ap, start, seed) for seed in seeds] for start in STARTS}
    print(f"| gap | start | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |")
    print("|---|---|" + "---|" * (len(seeds) + 1))
    for gap in found["eva"][0]:
        values = {start: [one[gap] for one in found[start]] for start in STARTS}
        for start in STARTS:
            cells = (f"{value:.1f}" for value in [*values[start], fmean(values[start])])
            print(f"| {gap} | {start} | {' | '.join(cells)} |")
        (low, high), p = paired_t(values["random"], values["eva"])
        difference = fmean(values["eva"]) - fmean(values["random"])
        print(f"\n{gap}: EVA minus random {difference:+.1f} ({low:.1f} to {high:.1f}), p = {p:.2g}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the end points of one of the recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="store")
    parser.add_argument("--matched", type=Path, metavar="RUN")
    parser.add_argument("--image", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.matched is None:
        print_gaps(arguments.store)
        return
    curves = print_matched(arguments.matched)
    if arguments.image:
        draw(arguments.image, curves)


if __name__ == "__main__":
    main()
