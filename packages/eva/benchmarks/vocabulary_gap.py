"""Print the end points of the recipe vocabulary_claim: gaps of average precision, with and without EVA's start.

    python packages/eva/benchmarks/vocabulary_gap.py [--store store]

Runs the recipe, whose finished stages are cached. Prints the gap between 12 and 120 classes and the gap between
frequent and rare classes, for each start and seed, with Student's paired t over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import fmean

import vfm
from vfm.statistics import paired_t

STARTS = ("eva", "random")
AP = Mapping[tuple[str, str, str], float]
"""Average precision in per cent by (report with its seed, model without it, metric)."""


def gaps(ap: AP, start: str, seed: str) -> dict[str, float]:
    """Compute the two end points of a start and seed."""
    few, many = f"few_classes@{seed}", f"many_classes@{seed}"
    frequent, rare = (ap[many, f"{start}_120", f"box_ap_freq_{band}"] for band in "fr")
    return {
        "AP(12) - AP(120)": ap[few, f"{start}_12", "box_ap"] - ap[many, f"{start}_120", "box_ap"],
        "AP(frequent) - AP(rare)": frequent - rare,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="store")
    run = vfm.run("vocabulary_claim", store=parser.parse_args().store)
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


if __name__ == "__main__":
    main()
