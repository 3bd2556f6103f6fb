"""Read the scores of `mask_claim`, `mask_images` and their controls from folders of runs, and list what is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vfm.interfaces import Report

Floats = npt.NDArray[np.float64]
Key = tuple[str, str]  # stage/metric, model
Values = dict[Key, dict[int, float]]  # in percent, by seed
Scores = dict[Key, Floats]  # in percent, for each seed

STUDENTS = [
    "scratch", "from_blank", "from_blank_unmasked", "from_unmasked", "from_masked_25", "from_eva", "from_masked_75",
]  # fmt: skip
ENCODERS = ["untrained", "of_blank", "of_blank_unmasked", "unmasked", "masked_25", "eva", "masked_75", "teacher"]
END_POINT = "curves/mean_over_log_samples"
LAST = "zero_shot/acc1"
PROBES = ["probe/lp_acc1", "dense/dense_miou"]
LONG = "zero_shot_long/acc1"
STAGES = ("curves", "probe", "dense", "zero_shot", "zero_shot_long")


def evaluations(runs: Sequence[Path], stages: Sequence[str]) -> Iterator[tuple[str, int, Path]]:
    """Yield stage, seed and folder of the runs' evaluations. The folder of an unfinished one does not exist."""
    for folder in [folder for run in runs for folder in (run / "artifacts").glob("*@*")]:
        stage, _, seed = folder.name.partition("@")
        if stage.removesuffix("_blank").removesuffix("_controls") in stages:
            yield stage, int(seed), folder


def read_values(runs: Sequence[Path], stages: Sequence[str] = STAGES) -> Values:
    """Read the metrics of the runs' evaluations, by stage without `_blank`, name and model."""
    values: Values = {}
    for stage, seed, folder in evaluations(runs, stages):
        for metric in Report.load(folder).metrics if folder.exists() else ():
            key = (f"{stage.removesuffix('_blank')}/{metric.name}", metric.model.partition("@")[0])
            values.setdefault(key, {})[seed] = 100 * metric.value
    if (PROBES[0], "brief") in values:  # a run with the weaker teacher
        values[PROBES[0], "teacher"] = values[PROBES[0], "brief"]
    return values


def read_scores(runs: Sequence[Path], stages: Sequence[str] = STAGES) -> Scores:
    """Read the metrics as `read_values` does, in the order of their seeds."""
    values = read_values(runs, stages)
    return {key: np.array([by_seed[seed] for seed in sorted(by_seed)]) for key, by_seed in values.items()}


def seeds_of(runs: Sequence[Path]) -> str:
    """List the seeds of the runs' students."""
    return listed(read_values(runs).get((END_POINT, "scratch"), ()))


def problem_of(runs: Sequence[Path]) -> str:
    """Describe which scores or seeds the tables and tests lack, in one line. Empty: none."""
    values = read_values(runs)
    if missing := unfinished(runs):
        return f"expected runs that have finished, missing {', '.join(missing)}"
    if not values:
        return f"expected runs with evaluations, got none in {', '.join(map(str, runs))}"
    if is_control(values):
        seeds = {seed for (metric, _), by_seed in values.items() if "_controls/" in metric for seed in by_seed}
        return "" if len(seeds) == 1 else f"expected one seed of controls, got {listed(seeds)}"
    seeds = {seed for by_seed in values.values() for seed in by_seed}
    if len(seeds) < 2:
        return f"expected two or more seeds, got {listed(seeds)}"
    gaps = []
    for key in sorted(needed(values)):
        if without := seeds - values.get(key, {}).keys():
            gaps.append(f"{key[0]} of {key[1]} for {listed(without)}")
    return f"expected scores of the seeds {listed(seeds)}, missing {'; '.join(gaps)}" if gaps else ""


def unfinished(runs: Sequence[Path]) -> list[str]:
    """List the evaluations that none of the runs has finished."""
    finished: dict[str, bool] = {}
    for stage, seed, folder in evaluations(runs, STAGES):
        name = f"{stage}@{seed}"
        finished[name] = folder.exists() or finished.get(name, False)
    return sorted(name for name, has_finished in finished.items() if not has_finished)


def needed(values: Values) -> set[Key]:
    """List the scores that the tables and tests of a recipe use."""
    students = {"scratch", "from_eva", "from_unmasked"} | {model for metric, model in values if metric == END_POINT}
    encoders = {"untrained", "unmasked", "eva", "teacher"} | {model for metric, model in values if metric == PROBES[0]}
    keys = {(metric, model) for metric in (END_POINT, LAST) for model in students.intersection(STUDENTS)}
    keys |= {(probe, model) for probe in run_probes(values) or PROBES[:1] for model in encoders.intersection(ENCODERS)}
    if (END_POINT, "from_blank_unmasked") in values:
        keys |= {(END_POINT, "from_blank"), (PROBES[0], "of_blank")}
    if (LONG, "scratch_long") in values:
        keys |= {(LONG, model) for model in ("scratch", "scratch_long", "from_eva", "from_unmasked")}
    return keys


def is_control(scores: Collection[Key]) -> bool:
    """Return whether the scores are of a recipe of controls."""
    return any(metric.startswith("curves_controls/") for metric, _ in scores)


def run_probes(scores: Collection[Key]) -> list[str]:
    """List the probes of unseen classes that the recipe has."""
    return [probe for probe in PROBES if (probe, "eva") in scores]


def listed(seeds: Collection[int]) -> str:
    """Format seeds in order."""
    return ", ".join(map(str, sorted(seeds))) or "none"
