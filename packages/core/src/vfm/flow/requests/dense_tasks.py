"""The tasks of an evaluation of detectors and segmenters: by what they predict, and by the labels of the data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import ValidationError

from vfm.base import UserError, error_text, load_function
from vfm.flow.requests.inputs import Fields, Input, saved_artifact
from vfm.interfaces import AnnotatedImages, Stage

DENSE_TASKS = ("detection", "segmentation", "panoptic")


def dense_tasks(models: Sequence[Input], data: Input, known: Mapping[str, type[Stage]]) -> list[str]:
    """List the dense tasks for which a dataset has labels and at least one of the models has predictions.

    Args:
        models: The models, also those that are no detectors and segmenters.
        data: The dataset.
        known: Stage types by kind.

    Raises:
        UserError: If the files of the dataset cannot be read.
    """
    predicted: set[str] = set()
    for model in models:
        predicted.update(model.predicts)
    if not predicted or not issubclass(data.makes, AnnotatedImages):
        return []
    common = predicted & set(labels_of(data, known))
    return [task for task in DENSE_TASKS if common & set(getattr(known[f"eval.{task}"], "tasks", ()))]


def labels_of(data: Input, known: Mapping[str, type[Stage]]) -> list[str]:
    """List the kinds of labels of annotated images, such as boxes, before they are indexed.

    Raises:
        UserError: If the files cannot be read.
    """
    if data.stage is None:
        labels: list[str] = list(getattr(saved_artifact(data.ref), "labels", ()))
        return labels
    stage = known[data.stage["kind"]]
    try:
        config = stage.model_validate(data.stage)
    except ValidationError as error:
        raise UserError(error_text(error, stage, f"{data.name}.")) from None
    return list(load_function("vfm.data.annotated.formats:open_reader")(config).labels)


def import_settings(model: Input, datasets: Sequence[Input], tasks: Collection[str]) -> Fields:
    """Choose the data whose classes a model of transformers gets, and what a model of queries is taken to predict.

    Args:
        model: The model.
        datasets: The datasets of the evaluation.
        tasks: The tasks of the evaluation.
    """
    fields: Fields = {}
    for data in datasets:
        if issubclass(data.makes, AnnotatedImages):
            fields["data"] = data.ref
            break
    if "panoptic" not in model.predicts:  # no queries
        return fields
    # A panoptic model alone predicts both objects and semantic maps.
    if "panoptic" in tasks or {"detection", "segmentation"} <= set(tasks):
        fields["task"] = "panoptic"
    elif "detection" in tasks:
        fields["task"] = "instance"
    return fields


def no_common_task(models: Sequence[Input], datasets: Sequence[Input], known: Mapping[str, type[Stage]]) -> str:
    """Explain in a line that no dataset has labels of what a model predicts."""
    predicted = ", ".join(f"{model.name} predicts {', '.join(model.predicts)}" for model in models)
    labelled = ", ".join(f"{data.name} has {', '.join(labels_of(data, known))}" for data in datasets)
    return f"{labelled}, {predicted}: expected labels of a kind that a model predicts"
