"""Collect the reports of a run, and summarize them over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from vfm.flow.plan.store import LINKS
from vfm.flow.records.runs import RUN_FILE
from vfm.interfaces import Artifact, Comparison, Report
from vfm.storage.integrity import read_sealed


def reports(directory: Path) -> dict[str, Report]:
    """Load the reports of a finished run by stage name, in the order of its stages.

    Raises:
        UserError: If the facts of an artifact are missing or damaged.
    """
    loaded = {}
    for name in read_sealed(directory / RUN_FILE, "stages")["stages"]:
        link = directory / LINKS / name
        if link.is_dir():
            artifact = Artifact.load(link, verify=False)
            if isinstance(artifact, Report):
                artifact.verify()
                loaded[name] = artifact
    return loaded


@dataclass(frozen=True)
class SeedSummary:
    """A metric over the seeds of a recipe, with values, mean, t-interval, and difference from the first model.

    `main` is True for a metric that decides between models (`Report.main_metrics`).
    """

    report: str
    model: str
    metric: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    comparison: Comparison | None = None
    unit: str = "share"
    main: bool = True


def over_seeds(loaded: dict[str, Report]) -> list[SeedSummary]:
    """Summarize the metrics of reports that only differ in their seed (`zero_shot@0`, `zero_shot@1`, ...)."""
    values: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    units: dict[tuple[str, str], str] = {}
    main: set[tuple[str, str]] = set()
    for name, report in loaded.items():
        stage, at, seed = name.partition("@")
        if not at:
            continue
        for metric in report.metrics:
            if metric.name in report.main_metrics:
                main.add((stage, metric.name))
            units[stage, metric.name] = metric.unit
            values[stage, metric.name][metric.model.split("@", 1)[0]][seed] = metric.value
    summaries = []
    for (report_name, metric_name), by_model in values.items():
        first = next(iter(by_model))
        for model, by_seed in by_model.items():
            if len(by_seed) > 1:
                from vfm.statistics import t_interval  # needs scipy, an optional extra

                numbers = tuple(by_seed.values())
                low, high = t_interval(numbers)
                mean = statistics.fmean(numbers)
                difference = _difference(metric_name, model, by_seed, first, by_model[first])
                unit = units[report_name, metric_name]
                decides = (report_name, metric_name) in main
                summaries.append(
                    SeedSummary(report_name, model, metric_name, numbers, mean, low, high, difference, unit, decides)
                )
    return summaries


def _difference(
    metric: str, model: str, by_seed: dict[str, float], first: str, of_first: dict[str, float]
) -> Comparison | None:
    """Compare a model with the first one over the same seeds, if their seeds are equal."""
    if model == first or by_seed.keys() != of_first.keys():
        return None
    from vfm.statistics import paired_t  # needs scipy, an optional extra

    (low, high), p_value = paired_t([of_first[seed] for seed in by_seed], list(by_seed.values()))
    difference = statistics.fmean(by_seed.values()) - statistics.fmean(of_first.values())
    return Comparison(
        metric=metric,
        model=model,
        baseline=first,
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        test="paired t over seeds",
    )
