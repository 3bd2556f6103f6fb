"""From verdicts to a Report: scores and paired tests, predictions as parquet, CLIP_benchmark's JSON, and panels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.artifacts import Artifact, Comparison, Metric, Report
from vfm.eval.compare import Scored, compare, score
from vfm.eval.fingerprint import checkpoint_hash
from vfm.stage import Context

Columns = Mapping[str, Any]  # one array or list a column, all of one length


@dataclass(frozen=True)
class Judgement:
    """What one model did on the items of a data set.

    verdicts: how it did by each metric; the first is the main one.
    predictions: tables by name, a row an item; they are kept as parquet.
    details: what else belongs in the result file (the chosen penalty, the prompts).
    """

    verdicts: Sequence[Scored]
    predictions: Mapping[str, Columns]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is said of data and task in every result: names, a hash that pins the numbers, language, resizing."""

    task: str
    dataset: str
    data_sha256: str
    language: str = "en"
    resize_mode: str | None = None  # None: each model's own


def write_report(
    ctx: Context,
    subject: Subject,
    judgements: Mapping[str, Judgement],
    checkpoints: Mapping[str, Artifact],
) -> Report:
    """Write all of an evaluation's result into `ctx.directory`; the first model is the baseline of the paired tests.

    Args:
        ctx: of the running stage.
        subject: the data and the task.
        judgements: by the model's name, all of the same items in the same order.
        checkpoints: the models' artifacts by the same names.
    """
    metrics = [score(verdict, model=name) for name, j in judgements.items() for verdict in j.verdicts]
    comparisons = _against_the_first(judgements)
    _write_predictions(ctx.directory, judgements)
    for name, judgement in judgements.items():
        result = _result(name, judgement, [m for m in metrics if m.model == name], checkpoints[name], subject)
        file = ctx.directory / "results" / f"{subject.dataset}_{name}_{subject.task}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Report.create(
        ctx.directory, task=subject.task, dataset=subject.dataset, metrics=metrics, comparisons=comparisons
    )


def _against_the_first(judgements: Mapping[str, Judgement]) -> list[Comparison]:
    (baseline, first), *others = judgements.items()
    return [
        compare(before, after, baseline=baseline, model=name)
        for name, judgement in others
        for before, after in zip(first.verdicts, judgement.verdicts, strict=True)
    ]


def _write_predictions(directory: Path, judgements: Mapping[str, Judgement]) -> None:
    """One parquet file a table, the models under one another with their name in the first column."""
    names = next(iter(judgements.values())).predictions
    for table in names:
        parts = []
        for model, judgement in judgements.items():
            part = pa.table({key: pa.array(values) for key, values in judgement.predictions[table].items()})
            parts.append(part.add_column(0, "model", pa.array([model] * part.num_rows)))
        folder = directory / "predictions"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.concat_tables(parts), folder / f"{table}.parquet")


def _result(
    name: str, judgement: Judgement, metrics: Sequence[Metric], checkpoint: Artifact, subject: Subject
) -> dict[str, Any]:
    """CLIP_benchmark's record (its tools read it), with what makes the number followable added.

    Times are in the manifest: this file is equal, bit for bit, however often and wherever the stage runs.
    """
    facts = checkpoint.model_dump()
    return {
        "dataset": subject.dataset,
        "model": facts.get("model") or facts.get("architecture") or name,
        "pretrained": checkpoint.path.resolve().name,
        "task": subject.task,
        "language": subject.language,
        "metrics": {m.name: m.value for m in metrics},
        "main_metric": metrics[0].name,
        "n": metrics[0].n,
        "n_by_metric": {m.name: m.n for m in metrics},
        "ci95": {m.name: [m.low, m.high] for m in metrics},
        "name": name,
        "precision": "fp32",
        "resize_mode": subject.resize_mode or "model",
        "vfm_version": version("vfm-core"),
        "checkpoint_sha256": checkpoint_hash(checkpoint),
        "data_sha256": subject.data_sha256,
        **judgement.details,
    }
