"""Checks of dense evaluations before a run, without importing torch. Stages repeat them when their inputs exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vfm.base import UserError
from vfm.eval.class_names import _first_difference
from vfm.eval.dense.stages import DenseEvaluation, DenseProbe
from vfm.interfaces import AnnotatedImages, Preflight, Ref, Training


def check_dense_evaluation(config: DenseEvaluation, ctx: Preflight) -> None:
    """Check the labels of the data, and the tasks and classes of the models, as far as they already exist."""
    data = ctx.artifact(config.data)
    if not data:
        return
    check_dense_data(config, data)
    for ref in config.models:
        model = ctx.artifact(ref)
        if model:
            check_dense_model(config, model.tasks, model.class_names, data, ref)


def check_dense_data(config: DenseEvaluation, data: AnnotatedImages) -> None:
    """Check that a dataset has the labels that an evaluation needs, and images if models are evaluated.

    Raises:
        UserError: If labels or images are missing.
    """
    if not set(config.tasks) & set(data.labels):
        needed = " or ".join(config.tasks)
        existing = ", ".join(data.labels)
        raise UserError(f"{config.data}: {config.kind} needs {needed}, the dataset has {existing}")
    if (config.models or not config.predictions) and not data.has_images:
        raise UserError(f"{config.data}: made with images: false, so only predictions can be evaluated on it")
    wanted = set(getattr(config, "shapes", None) or ())
    missing = sorted(wanted - set(data.labels))
    if missing:
        raise UserError(f"{config.data}: shapes has {missing[0]}, the dataset has {', '.join(data.labels)}")


def check_dense_model(
    config: DenseEvaluation,
    tasks: Sequence[str],
    class_names: list[str] | None,
    data: AnnotatedImages | None,
    name: str,
) -> None:
    """Check that a model has a task that is evaluated, and the dataset's classes.

    Args:
        config: Settings of the evaluation.
        tasks: Tasks of the model.
        class_names: Classes of the model, if they are known.
        data: The dataset, if it exists.
        name: Name of the model, for the error.

    Raises:
        UserError: If the task or the classes do not fit.
    """
    if not set(config.tasks) & set(tasks):
        needed = " or ".join(config.tasks)
        existing = ", ".join(tasks)
        raise UserError(f"{name}: {config.kind} needs {needed}, the model predicts {existing}")
    if data and class_names is not None and class_names != data.class_names:
        of_model, of_data = _first_difference(class_names, data.class_names)
        raise UserError(f"expected the same classes in {name} and {config.data}, got {of_model!r} where {of_data!r} is")


def check_dense_evaluations(
    config: Training, tasks: Sequence[str], class_names: list[str] | None, known: Callable[[Ref[Any]], Any]
) -> None:
    """Check that a model in training fits the tasks of its evaluations, and the classes of their data.

    Args:
        config: The training stage.
        tasks: Tasks of the model.
        class_names: Classes of the training data, if they are known.
        known: Looks up an input, if it exists (`Preflight.artifact` or `Context.load`).

    Raises:
        UserError: If the tasks or the classes do not fit.
    """
    for evaluation in config.evaluation.tasks:
        if isinstance(evaluation, DenseEvaluation):
            check_dense_model(evaluation, tasks, class_names, known(evaluation.data), "the model in training")


def check_dense_probe(config: DenseProbe, ctx: Preflight) -> None:
    """Check the labels and classes of the data, if they already exist."""
    data = ctx.artifact(config.data)
    train = ctx.artifact(config.train) if config.train else None
    if data:
        check_semantic(config, data, train)


def check_semantic(config: DenseProbe, data: AnnotatedImages, train: AnnotatedImages | None) -> None:
    """Check that both sets have images with semantic labels, and the same classes.

    Args:
        config: Settings of the evaluation.
        data: Test set.
        train: Training set. None: the test set is split.

    Raises:
        UserError: If images or labels are missing, or the classes differ.
    """
    for ref, dataset in ((config.data, data), (config.train, train)):
        if dataset and ("semantic" not in dataset.labels or not dataset.has_images):
            labels = ", ".join(dataset.labels)
            raise UserError(f"{ref}: eval.dense_probe needs images with semantic labels, got {labels}")
    if train and train.class_names != data.class_names:
        here, there = _first_difference(train.class_names, data.class_names)
        raise UserError(
            f"expected the same classes in {config.train} and {config.data}, got {here!r} where {there!r} is"
        )
