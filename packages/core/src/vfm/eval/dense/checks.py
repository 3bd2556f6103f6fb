"""Checks of evaluations before a run, without torch; evaluations repeat them once their inputs exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vfm.base import UserError
from vfm.eval.class_names import _first_difference
from vfm.eval.dense.stages import DenseEvaluation, DenseProbe
from vfm.interfaces import AnnotatedImages, Preflight, Ref, Training


def check_dense_evaluation(config: DenseEvaluation, ctx: Preflight) -> None:
    """Check the data's labels and the models' tasks and classes, where they exist."""
    if data := ctx.artifact(config.data):
        check_dense_data(config, data)
        for ref in config.models:
            if model := ctx.artifact(ref):
                check_dense_model(config, model.tasks, model.class_names, data, ref)


def check_dense_data(config: DenseEvaluation, data: AnnotatedImages) -> None:
    """Check that a dataset has the labels that an evaluation needs, and its images if models are evaluated.

    Raises:
        UserError: it has not.
    """
    if not set(config.tasks) & set(data.labels):
        needed, found = " or ".join(config.tasks), ", ".join(data.labels)
        raise UserError(f"{config.data}: {config.kind} needs {needed}, the dataset has {found}")
    if (config.models or not config.predictions) and not data.has_images:
        raise UserError(f"{config.data}: made with images: false, so only predictions can be evaluated on it")
    wanted = set(getattr(config, "shapes", None) or ())
    if missing := sorted(wanted - set(data.labels)):
        raise UserError(f"{config.data}: shapes has {missing[0]}, the dataset has {', '.join(data.labels)}")


def check_dense_model(
    config: DenseEvaluation,
    tasks: Sequence[str],
    class_names: list[str] | None,
    data: AnnotatedImages | None,
    name: str,
) -> None:
    """Check that a model predicts what is evaluated, with the dataset's classes if both are known.

    Raises:
        UserError: it does not.
    """
    if not set(config.tasks) & set(tasks):
        needed, found = " or ".join(config.tasks), ", ".join(tasks)
        raise UserError(f"{name}: {config.kind} needs {needed}, the model predicts {found}")
    if data and class_names is not None and class_names != data.class_names:
        one, other = _first_difference(class_names, data.class_names)
        raise UserError(f"expected the same classes in {name} and {config.data}, got {one!r} where {other!r} is")


def check_dense_evaluations(
    config: Training, tasks: Sequence[str], class_names: list[str] | None, known: Callable[[Ref[Any]], Any]
) -> None:
    """Check that a model in training predicts what its evaluations need, with the classes of their data.

    Args:
        config: the training.
        tasks: what its model predicts.
        class_names: of the training's data; None if they are not known yet.
        known: returns an input, None if it does not exist yet: `Preflight.artifact` or `Context.load`.

    Raises:
        UserError: it does not.
    """
    for evaluation in config.evaluation.tasks:
        if isinstance(evaluation, DenseEvaluation):
            check_dense_model(evaluation, tasks, class_names, known(evaluation.data), "the model in training")


def check_dense_probe(config: DenseProbe, ctx: Preflight) -> None:
    """Check the labels and classes of the data where they exist."""
    data, train = ctx.artifact(config.data), ctx.artifact(config.train) if config.train else None
    if data:
        check_semantic(config, data, train)


def check_semantic(config: DenseProbe, data: AnnotatedImages, train: AnnotatedImages | None) -> None:
    """Check that both sets have semantic labels and images, of the same classes.

    Raises:
        UserError: they have not.
    """
    for ref, one in ((config.data, data), (config.train, train)):
        if one and ("semantic" not in one.labels or not one.has_images):
            raise UserError(f"{ref}: eval.dense_probe needs images with semantic labels, got {', '.join(one.labels)}")
    if train and train.class_names != data.class_names:
        here, there = _first_difference(train.class_names, data.class_names)
        raise UserError(
            f"expected the same classes in {config.train} and {config.data}, got {here!r} where {there!r} is"
        )
