"""Draw the page that compares runs, with paired tests, curves in one chart, and the differing settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError, drop_keys
from vfm.eval.encode.scored_items import read_items
from vfm.flow.plan.store import Slot
from vfm.flow.records.reasons import differences, record_of_step
from vfm.interfaces import Artifact, Comparison, LinesPanel, Panel, Report, TablePanel, load_panels
from vfm.report.drawing import Drawing, draw
from vfm.report.page import Section, render
from vfm.report.result_table import Result, ResultRow, ResultTable, corrected_tables
from vfm.report.run_summary import RunSummary, StageEntry
from vfm.statistics import Accuracy, compare
from vfm.storage.store_files import read_json

NOTE = "Tests are paired on the same items. Stages of one artifact in all runs are left out."
Entries = Mapping[str, StageEntry]  # by name of the run


def write_comparison(runs: Mapping[str, RunSummary], path: Path) -> None:
    """Write the page that compares runs. The first run is the baseline.

    Args:
        runs: Summaries by the names to show.
        path: The file.
    """
    stages: dict[str, dict[str, StageEntry]] = {}
    everything = []
    for run, summary in runs.items():
        for entry in summary.stages:
            stages.setdefault(entry.name, {})[run] = entry
            everything.append(_of_run(entry, run))
    result_tables = []
    sections = []
    for name, entries in stages.items():
        ids = {entry.id for entry in entries.values()}
        if len(ids) == 1:
            continue
        table = result_table(name, entries)
        if table:
            result_tables.append(table)
        drawings = list(overlaid_curves(entries))
        if drawings:
            sections.append(Section(next(iter(entries.values())), None, drawings, repeats=False))
    tables, findings = corrected_tables(result_tables)
    settings = settings_table(stages, list(runs))
    first = next(iter(runs.values()))
    summary = replace(
        first,
        recipe=" and ".join(runs),
        description=NOTE,
        command=f"vfm report {' '.join(runs)}",
        seconds=sum(run.seconds for run in runs.values()),
        stages=everything,
        seeds=(),
        recipe_text="",
        record_hash="",  # so that the page cannot be taken for the page of the first run
    )
    render(summary, tables, [draw(settings, path.parent, "settings")], sections, findings, path)


def result_table(name: str, entries: Entries) -> ResultTable | None:
    """Build the metrics of an evaluation across all runs.

    Each model is compared with the same model in the first run.
    """
    reports: dict[str, Report] = {}
    for run, entry in entries.items():
        report = _report(entry)
        if report:
            reports[run] = report
    if len(reports) < 2:
        return None
    first, *_ = reports
    first_items = read_items(entries[first].directory)
    first_data = _data_hash(entries[first].directory)
    all_same = True
    results: dict[str, Result] = {}
    for run, report in reports.items():
        items = read_items(entries[run].directory)
        is_same = _data_hash(entries[run].directory) == first_data
        all_same &= is_same
        for metric in report.metrics:
            main = metric.name in report.main_metrics
            empty = Result(metric.name, metric.unit, metric.n, metric.chance, [], main)
            result = results.setdefault(metric.name, empty)
            test = None
            # Paired tests need the same items.
            if run != first and is_same:
                key = (metric.model, metric.name)
                test = _paired(first_items.get(key), items.get(key), first, f"{run}: {metric.model}")
            row = ResultRow(f"{run}: {metric.model}", metric.value, metric.low, metric.high, comparison=test)
            result.rows.append(row)
    subtitle = f"{reports[first].task} on {reports[first].dataset}"
    if not all_same:
        subtitle += ", on different data: no tests"
    anchor = f"made-{_of_run(entries[first], first).anchor}"
    return ResultTable(name, subtitle, anchor, list(results.values()), num_headline=len(results))


def _of_run(entry: StageEntry, run: str) -> StageEntry:
    """Rename a stage so that its name is unique among the runs."""
    return replace(entry, name=f"{entry.name}@{run}")


def _report(entry: StageEntry) -> Report | None:
    try:
        artifact = Artifact.load(entry.directory, verify=False)
    except UserError:
        return None
    if isinstance(artifact, Report):
        return artifact
    return None


def _data_hash(directory: Path) -> str:
    """Read the hash of the evaluated items, if the report has one."""
    records = sorted((directory / "results").glob("*.json"))
    if not records:
        return ""
    return str(read_json(records[0]).get("data_sha256", ""))


def _paired(before: Accuracy | None, after: Accuracy | None, baseline: str, model: str) -> Comparison | None:
    """Compute the paired test of two scores, if their items are known and equal."""
    if before is None or after is None or len(before.correct) != len(after.correct):
        return None
    for first, second in ((before.groups, after.groups), (before.classes, after.classes)):
        if not np.array_equal(_known(first), _known(second)):
            return None
    return compare(before, after, baseline=baseline, model=model)


def _known(values: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if values is not None:
        return values
    return np.empty(0, np.int64)


def settings_table(stages: Mapping[str, Entries], runs: Sequence[str]) -> TablePanel:
    """Build the table of settings that differ, with a row for each setting and a column for each run."""
    rows: list[list[str | float | int | None]] = []
    for name, entries in stages.items():
        if len(entries) < len(runs):
            present = dict.fromkeys(runs, "no such stage") | dict.fromkeys(entries, "yes")
            rows.append([name, "", *present.values()])
            continue
        records = {run: _made_with(entry) for run, entry in entries.items()}
        for part in ("config", "sources") if all(records.values()) else ():
            by_run = {run: {part: record.get(part, {})} for run, record in records.items()}
            for key, values in _differing(by_run).items():
                setting = key.removeprefix("config.")
                rows.append([name, setting, *map(_shown, values.values())])
    if rows:
        note = "Stages that differ only because an earlier one does have no row."
    else:
        note = "The settings are the same."
    return TablePanel(title="Settings", note=note, front=True, columns=["stage", "setting", *runs], rows=rows)


def _made_with(entry: StageEntry) -> Mapping[str, Any]:
    """Read how an artifact was made, or is being made.

    A stage that has not begun has no settings.
    """
    if entry.manifest:
        return entry.manifest
    try:
        record = record_of_step(Slot(entry.directory.parent, entry.id).work)
    except UserError:
        return {}
    return {**record, "config": drop_keys(record["config"], ("name", "kind", "runtime"))}


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Collect the settings that differ from the first run.

    Returns:
        The value in each run, by dotted key.
    """
    (_, before), *others = settings.items()
    values: dict[str, dict[str, Any]] = {}
    for run, after in others:
        for key, old, new in differences(before, after):
            values.setdefault(key, dict.fromkeys(settings, old))[run] = new
    return values


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str)


def overlaid_curves(entries: Entries) -> Iterator[Drawing]:
    """Yield the charts that a stage has drawn in several runs, with the curves of all runs in each."""
    charts: dict[str, list[tuple[str, LinesPanel]]] = {}
    for run, entry in entries.items():
        panels: Sequence[Panel] = entry.charts
        with suppress(UserError):
            panels = panels or load_panels(entry.directory)
        for panel in panels:
            if isinstance(panel, LinesPanel):
                charts.setdefault(panel.title, []).append((run, panel))
    for title, versions in charts.items():
        if len(versions) < 2:
            continue
        single = all(len(panel.series) == 1 for _, panel in versions)
        series = []
        for run, panel in versions:
            for curve in panel.series:
                series.append(curve.model_copy(update={"name": run if single else f"{run}: {curve.name}"}))
        merged = versions[0][1].model_copy(update={"series": series})
        anchor = next(iter(entries.values())).anchor
        yield draw(merged, Path(), f"{anchor}-{title}")
