"""The recipe of an evaluation from a user's request: models, datasets and tasks by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vfm.base import UserError, did_you_mean
from vfm.data.samples.columns import column_name
from vfm.flow.requests.datasets import EvaluationDataset, dataset_at
from vfm.flow.requests.evaluation import SUMMARY, EvaluationPlan, evaluation_recipe
from vfm.flow.requests.inputs import model_input, split_name
from vfm.flow.requests.suites import find_datasets, load_suite, shipped_dataset, shipped_names
from vfm.interfaces import Stage
from vfm.storage import files

__all__ = ["RESIZE_MODES", "SUMMARY", "EvaluationRequest", "requested_recipe"]

RESIZE_MODES = ("model", "shortest", "longest", "squash")


@dataclass(frozen=True)
class EvaluationRequest:
    """Models, datasets and tasks of an evaluation, as a user names them.

    Attributes:
        models: `[NAME=]MODEL` each, as for `model_input`. The first is the baseline of the comparisons.
        data: `[NAME=]PATH` of a dataset each, or the name of a dataset in a suite.
        suite: A list of datasets: diva29, datacomp38, small, or a YAML file like them.
        root: Folder of a suite's datasets.
        tasks: Kinds of `eval.*` without the prefix. Empty: the tasks of the suite, or all that fit the data.
        train: Training images for probes and kNN. Empty: `train` next to the data.
        languages: Languages of the captions. Empty: languages of the dataset.
        resize: How images are resized to the model's size, each of `RESIZE_MODES`.
        data_options: Further fields of the stages that import the data.
        by: Column of the data, for whose values scores are also reported.
    """

    models: Sequence[str]
    data: Sequence[str] = ()
    suite: str = ""
    root: str = "."
    tasks: Sequence[str] = ()
    train: str = ""
    languages: Sequence[str] = ()
    resize: Sequence[str] = ("model",)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""


def requested_recipe(request: EvaluationRequest, known: Mapping[str, type[Stage]]) -> str:
    """Write the recipe as YAML.

    Args:
        request: Models, datasets and tasks.
        known: Stage types by kind.

    Raises:
        UserError: If there is no such model, dataset or task, or nothing fits.
    """
    for mode in request.resize:
        if mode not in RESIZE_MODES:
            raise UserError(f"resize: {mode!r} is not a valid mode{did_you_mean(mode, RESIZE_MODES)}")
    plan = EvaluationPlan(
        list(map(model_input, request.models)),
        known,
        list(dict.fromkeys(request.languages)),
        [None if mode == "model" else mode for mode in dict.fromkeys(request.resize)],
        request.suite,
    )
    datasets = [_by_column(dataset, request.by, known) for dataset in _datasets(request, plan)]
    where = f" on {request.suite}" if request.suite else ""
    about = f"Evaluation of {', '.join(model.name for model in plan.models)}{where}"
    return evaluation_recipe(plan, datasets, list(dict.fromkeys(request.tasks)), about)


def _by_column(dataset: EvaluationDataset, location: str, known: Mapping[str, type[Stage]]) -> EvaluationDataset:
    """Add a column to the import of a dataset, and report its evaluations by this column.

    Raises:
        UserError: If the stage that imports it has no columns.
    """
    if not location:
        return dataset
    settings = {**dataset.settings, "by": column_name(location)}
    fields = dataset.data.stage
    if not fields:  # a saved dataset has its columns
        return replace(dataset, settings=settings)
    if "columns" not in known[fields["kind"]].model_fields:
        raise UserError(f"by {location}: expected images with captions or labels, got {fields['kind']}")
    stage = {**fields, "columns": [*fields.get("columns", ()), location]}
    return replace(dataset, data=replace(dataset.data, stage=stage), settings=settings)


def _datasets(request: EvaluationRequest, plan: EvaluationPlan) -> list[EvaluationDataset]:
    """Resolve the datasets of the data and of the suite. Datasets missing on the disk are recorded in the plan."""
    data = request.data
    suite = request.suite
    root = request.root
    train = request.train or None
    if not data and not suite:
        raise UserError("no datasets: give data, or a suite and its root")
    if train and (len(data) != 1 or suite):
        raise UserError("train needs exactly one dataset as data, and no suite; other data have a folder `train` each")
    datasets = []
    if request.data_options and suite:
        raise UserError("data-option: expected data, got a suite, which has its own options")
    for word in data:
        name, path = split_name(word)
        exists = files.exists(path)
        if exists or "{" in path:
            shipped = None
        else:
            shipped = shipped_dataset(path, root, plan.known)
        if shipped is None and "/" not in path and not exists:
            raise UserError(
                f"data {path}: no such path, and no suite has such a dataset{did_you_mean(path, shipped_names())}"
            )
        if shipped and request.data_options:
            raise UserError(f"data {path}: expected no data-option for a dataset of a suite")
        if shipped:
            datasets.append(replace(shipped, title=name or shipped.title))
        else:
            datasets.append(dataset_at(word, plan.known, train, request.data_options))
    if suite:
        if not files.is_directory(root):
            raise UserError(f"root {root}: no such folder; expected the folder of the datasets of {suite}")
        suite_datasets, left_out = find_datasets(load_suite(suite, plan.known), root, plan.known)
        plan.left_out += left_out
        datasets += suite_datasets
    return datasets
