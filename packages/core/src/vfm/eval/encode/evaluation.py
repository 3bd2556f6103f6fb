"""Load the models of an evaluation, evaluate them, and write the report.

The folder of a report has scores and paired tests, predictions and scored items as Parquet, JSON in the format of
CLIP_benchmark, and panels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vfm.eval.base import EncodedEvaluation, ModelEvaluation
from vfm.eval.encode.encoders import load_encoder
from vfm.eval.encode.hashes import checkpoint_hash
from vfm.eval.encode.scored_items import write_items
from vfm.interfaces import (
    Artifact,
    Comparison,
    Context,
    Evaluated,
    Metric,
    ModelResult,
    Ref,
    Report,
    Runtime,
    Score,
    short_name,
)
from vfm.models import ImageEncoder
from vfm.statistics import compare_models, to_metric
from vfm.train import distributed
from vfm.train.parallel.sharing import leave_to_first, sharing

M = TypeVar("M")


class ReportSettings(Protocol):
    """Settings of an evaluation that its report needs."""

    @property
    def data(self) -> str:
        """Name of the dataset."""
        ...

    @property
    def task_name(self) -> str:
        """Name of the task in result files."""
        ...

    @property
    def resize_mode(self) -> str | None:
        """How images are resized. None is the mode that each model was trained with."""
        ...


class ReportedEvaluation(ReportSettings, Protocol):
    """Settings of an evaluation that loads models and shares their work among processes."""

    @property
    def models(self) -> Sequence[Ref[Any]]:
        """Artifacts of the models."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Device, processes and threads."""
        ...


def evaluate_models(config: ModelEvaluation, ctx: Context) -> Report:
    """Load the models, evaluate them, and write scores, paired tests, predictions and panels.

    Several processes share the batches (`Stage.in_processes`), and only rank 0 writes.

    Raises:
        LeftToFirst: In all processes but the first.
    """
    precision = config.precision if isinstance(config, EncodedEvaluation) else "fp32"

    def load(name: str, checkpoint: Artifact, device: torch.device) -> ImageEncoder:
        return load_encoder(checkpoint, device, config.resize_mode, precision)

    return report_models(config, ctx, load, partial(config.evaluate, ctx))


def report_models(
    config: ReportedEvaluation,
    ctx: Context,
    load: Callable[[str, Any, torch.device], M],
    evaluate: Callable[[Mapping[str, M]], Evaluated],
) -> Report:
    """Load the models of an evaluation, evaluate them, and write the report.

    Args:
        config: The evaluation.
        ctx: Context of the running stage.
        load: Loads a model from a name, an artifact and a device.
        evaluate: Evaluates models by name. Several processes may share its computations.

    Raises:
        LeftToFirst: In all processes but the first.
    """
    checkpoints = {}
    for ref in config.models:
        checkpoints[short_name(ref)] = ctx.load(ref)
    with distributed(config.runtime) as world, sharing(world):
        models = {}
        for name, checkpoint in checkpoints.items():
            models[name] = load(name, checkpoint, world.device)
        evaluated = evaluate(models)
        leave_to_first()
        return write_report(config, ctx, evaluated, checkpoints)


def write_report(
    config: ReportSettings,
    ctx: Context,
    evaluated: Evaluated,
    checkpoints: Mapping[str, Artifact],
) -> Report:
    """Write the results of an evaluation into `ctx.directory`. The first model is the baseline of the paired tests.

    Args:
        config: Names the dataset, the task and the resizing.
        ctx: Context of the running stage.
        evaluated: Results by the model's name, all on the same items in the same order.
        checkpoints: The models' artifacts by the same names. A model given only by its predictions has none.
    """
    results = evaluated.results
    dataset = short_name(config.data)
    task = config.task_name
    scores: list[tuple[str, Score]] = []
    metrics: list[Metric] = []
    metrics_by_model: dict[str, list[Metric]] = {}
    for name, result in results.items():
        metrics_by_model[name] = []
        for score in result.scores:
            scores.append((name, score))
            metrics_by_model[name].append(to_metric(score, model=name))
        metrics += metrics_by_model[name]
    comparisons = _against_the_first(results)
    _write_predictions(ctx.directory, results)
    write_items(ctx.directory, scores)
    for name, metrics_of_model in metrics_by_model.items():
        record = _record(config, evaluated, name, metrics_of_model, checkpoints.get(name))
        file = ctx.directory / "results" / f"{dataset}_{name}_{task}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Report.create(ctx.directory, task=task, dataset=dataset, metrics=metrics, comparisons=comparisons)


def _against_the_first(results: Mapping[str, ModelResult]) -> list[Comparison]:
    (baseline, first), *others = results.items()
    comparisons: list[Comparison] = []
    for name, result in others:
        comparisons += compare_models(first.scores, result.scores, baseline=baseline, model=name)
    return comparisons


def _write_predictions(directory: Path, results: Mapping[str, ModelResult]) -> None:
    """Write one Parquet file per table, with the rows model by model and the model's name in the first column."""
    for table in next(iter(results.values())).predictions:
        parts = []
        for model, result in results.items():
            part = pa.table({key: pa.array(values) for key, values in result.predictions[table].items()})
            parts.append(part.add_column(0, "model", pa.array([model] * part.num_rows)))
        folder = directory / "predictions"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.concat_tables(parts), folder / f"{table}.parquet", write_page_checksum=True)


def _record(
    config: ReportSettings,
    evaluated: Evaluated,
    name: str,
    metrics: Sequence[Metric],
    checkpoint: Artifact | None,
) -> dict[str, Any]:
    """Build the record that the tools of CLIP_benchmark read, plus hashes and versions that make it traceable.

    Times are in the manifest instead, so that repeated runs of the stage write the same bytes.
    """
    facts = checkpoint.model_dump() if checkpoint else {}
    values = {}
    counts = {}
    intervals = {}
    for metric in metrics:
        values[metric.name] = metric.value
        counts[metric.name] = metric.n
        intervals[metric.name] = [metric.low, metric.high]
    return {
        "dataset": short_name(config.data),
        "model": facts.get("model") or facts.get("architecture") or name,
        "pretrained": checkpoint.path.resolve().name if checkpoint else "",
        "task": config.task_name,
        "language": evaluated.language,
        "metrics": values,
        "main_metric": metrics[0].name,
        "n": metrics[0].n,
        "n_by_metric": counts,
        "ci95": intervals,
        "name": name,
        "precision": getattr(config, "precision", "fp32"),
        "resize_mode": config.resize_mode or "model",
        "vfm_version": version("vfm-core"),
        "checkpoint_sha256": checkpoint_hash(checkpoint) if checkpoint else "",
        "data_sha256": evaluated.data_sha256,
        **evaluated.results[name].details,
    }
