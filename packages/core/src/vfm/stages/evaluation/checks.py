"""Checks of evaluations before a run, without torch; evaluations repeat them once their inputs exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vfm.artifacts import AnnotatedImages, Artifact, LabeledDataset, TaggedImages
from vfm.config import UserError, did_you_mean
from vfm.interfaces import Training
from vfm.stage import Preflight, Ref
from vfm.stages.evaluation.base import FeatureEvaluation
from vfm.stages.evaluation.dense import DenseEvaluation, DenseProbe
from vfm.stages.evaluation.features import Classify, LinearProbe
from vfm.stages.evaluation.open_segmentation import OpenSegmentation
from vfm.stages.evaluation.text_image import Retrieval, ZeroShot
from vfm.stages.evaluation.video import VideoEvaluation
from vfm.templates import read_sentences, sentences_of


def check_zero_shot(config: ZeroShot, ctx: Preflight) -> None:
    """Check the class names where the dataset exists."""
    if config.prompts:
        read_sentences(config.prompts)
    if data := ctx.artifact(config.data):
        check_zero_shot_classes(config, data)


def check_retrieval(config: Retrieval, ctx: Preflight) -> None:
    """Check the language where the dataset exists."""
    if data := ctx.artifact(config.data):
        data.check_languages([config.language], config.data)


def check_classify(config: Classify, ctx: Preflight) -> None:
    """Check the class names where the dataset exists."""
    if data := ctx.artifact(config.data):
        check_class_names(data.class_names, str(config.data))


def check_feature_evaluation(config: FeatureEvaluation, ctx: Preflight) -> None:
    """Check that both sets are of one type and, where they exist, have the same classes."""
    train, data = ctx.artifact(config.train), ctx.artifact(config.data)
    if train and data:
        check_same_classes(config, train, data)
    elif (train_type := _type_of(ctx, config.train)) and (data_type := _type_of(ctx, config.data)):
        check_same_types(config, train_type, data_type)


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


def check_open_segmentation(config: OpenSegmentation, ctx: Preflight) -> None:
    """Check the labels of the data where it exists."""
    if data := ctx.artifact(config.data):
        check_open_segmentation_data(config, data)


def check_open_segmentation_data(config: OpenSegmentation, data: AnnotatedImages) -> None:
    """Check that a dataset has semantic labels and images.

    Raises:
        UserError: it has not.
    """
    if "semantic" not in data.labels or not data.has_images:
        found = ", ".join(data.labels) if data.has_images else "labels only"
        raise UserError(f"{config.data}: {config.kind} needs images with semantic labels, got {found}")


def check_video_evaluation(config: VideoEvaluation, ctx: Preflight) -> None:
    """Check that models have the classes of the data, where they exist."""
    data = ctx.artifact(config.data)
    for ref in config.models:
        model = ctx.artifact(ref)
        if data and model and (missing := [name for name in data.class_names if name not in model.class_names]):
            hint = did_you_mean(missing[0], model.class_names)
            raise UserError(f"{ref}: its head has no class {missing[0]!r} of {config.data}{hint}")


def check_class_names(names: Sequence[str], where: str) -> None:
    """Check that class names are different and not empty.

    Raises:
        UserError: fewer than two classes, an empty name, or one name for two classes.
    """
    if len(names) < 2:
        raise UserError(f"{where}: expected two or more classes, got {len(names)}")
    for label, name in enumerate(names):
        if not name.strip():
            raise UserError(f"{where}: class {label} has an empty name")
        if names.index(name) != label:
            raise UserError(f"{where}: classes {names.index(name)} and {label} are both named {name!r}")


def check_zero_shot_classes(config: ZeroShot, data: LabeledDataset | TaggedImages) -> None:
    """Check the class names, that there is one per label, and that each has sentences.

    Raises:
        UserError: a name is missing, empty or used twice, or sentences do not fit the names.
    """
    check_class_names(config.class_names or data.class_names, str(config.data))
    if config.class_names and len(config.class_names) != len(data.class_names):
        expected = f"expected one per class of {config.data}, {len(data.class_names)}"
        raise UserError(f"class_names: {expected}, got {len(config.class_names)}")
    if config.prompts:
        sentences_of(config.prompts, config.class_names or data.class_names)


def check_same_types(config: FeatureEvaluation, train: type[Artifact], data: type[Artifact]) -> None:
    """Check that both sets have one class per image, or both several labels, as the solver needs.

    Raises:
        UserError: the types differ, or the solver takes one class per image.
    """
    if train is not data:
        types = f"{config.train} is a {train.__name__}, {config.data} a {data.__name__}"
        raise UserError(f"expected train and data of one type; {types}")
    if isinstance(config, LinearProbe) and config.solver == "lbfgs" and issubclass(train, TaggedImages):
        raise UserError(f"solver lbfgs takes one class per image, {config.train} has several labels; set solver: sgd")


def check_same_classes(
    config: FeatureEvaluation, train: LabeledDataset | TaggedImages, data: LabeledDataset | TaggedImages
) -> None:
    """Check that both sets have the same classes.

    Raises:
        UserError: types or class names differ, or class names are empty or used twice.
    """
    check_same_types(config, type(train), type(data))
    check_class_names(data.class_names, str(config.data))
    if train.class_names != data.class_names:
        one, other = _first_difference(train.class_names, data.class_names)
        raise UserError(
            f"expected the same classes in {config.train} and {config.data}, got {one!r} in {config.train} where"
            f" {config.data} has {other!r}"
        )


def _type_of(ctx: Preflight, ref: Ref[Any]) -> type[Artifact] | None:
    """Return the type of an input, which its stage may still have to make."""
    found, maker = ctx.artifact(ref), ctx.stage(ref)
    return type(found) if found else maker.makes if maker else None


def _first_difference(one: list[str], other: list[str]) -> tuple[str, str]:
    for a, b in zip([*one, "(none)"], [*other, "(none)"], strict=False):
        if a != b:
            return a, b
    return one[-1], "(none)"
