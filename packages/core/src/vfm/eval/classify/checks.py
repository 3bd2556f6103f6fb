"""Checks of classification stages before a run, without importing torch. Stages repeat them when their inputs exist."""

from __future__ import annotations

from typing import Any

from vfm.base import UserError
from vfm.data.prompts.templates import read_sentences, sentences_of
from vfm.eval.base import FeatureEvaluation
from vfm.eval.class_names import _first_difference, check_class_names
from vfm.eval.classify.stages import Classify, LinearProbe, ZeroShot
from vfm.interfaces import Artifact, LabeledDataset, Preflight, Ref, TaggedImages


def check_zero_shot(config: ZeroShot, ctx: Preflight) -> None:
    """Check the sentences and, if the dataset already exists, the class names."""
    if config.prompts:
        read_sentences(config.prompts)
    data = ctx.artifact(config.data)
    if data:
        check_zero_shot_classes(config, data)


def check_classify(config: Classify, ctx: Preflight) -> None:
    """Check the class names, if the dataset already exists."""
    data = ctx.artifact(config.data)
    if data:
        check_class_names(data.class_names, str(config.data))


def check_feature_evaluation(config: FeatureEvaluation, ctx: Preflight) -> None:
    """Check that both sets have the same type and, if they already exist, the same classes."""
    train = ctx.artifact(config.train)
    data = ctx.artifact(config.data)
    if train and data:
        check_same_classes(config, train, data)
        return
    train_type = _type_of(ctx, config.train)
    data_type = _type_of(ctx, config.data)
    if train_type and data_type:
        check_same_types(config, train_type, data_type)


def check_zero_shot_classes(config: ZeroShot, data: LabeledDataset | TaggedImages) -> None:
    """Check that there is one valid class name per label, and that each class has sentences.

    Raises:
        UserError: If a name is missing, empty or used twice, or sentences do not fit the names.
    """
    check_class_names(config.class_names or data.class_names, str(config.data))
    if config.class_names and len(config.class_names) != len(data.class_names):
        expected = f"expected one per class of {config.data}, {len(data.class_names)}"
        raise UserError(f"class_names: {expected}, got {len(config.class_names)}")
    if config.prompts:
        sentences_of(config.prompts, config.class_names or data.class_names)


def check_same_types(config: FeatureEvaluation, train: type[Artifact], data: type[Artifact]) -> None:
    """Check that both sets have one class per image, or both have several labels.

    Args:
        config: Settings of the evaluation.
        train: Type of the training set.
        data: Type of the test set.

    Raises:
        UserError: If the types differ, or the solver only supports one class per image.
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

    Args:
        config: Settings of the evaluation.
        train: Training set.
        data: Test set.

    Raises:
        UserError: If types or class names differ, or class names are empty or used twice.
    """
    check_same_types(config, type(train), type(data))
    check_class_names(data.class_names, str(config.data))
    if train.class_names != data.class_names:
        in_train, in_data = _first_difference(train.class_names, data.class_names)
        raise UserError(
            f"expected the same classes in {config.train} and {config.data}, got {in_train!r} in {config.train} where"
            f" {config.data} has {in_data!r}"
        )


def _type_of(ctx: Preflight, ref: Ref[Any]) -> type[Artifact] | None:
    """Find the type of an input that may not exist yet."""
    artifact = ctx.artifact(ref)
    stage = ctx.stage(ref)
    if artifact:
        return type(artifact)
    if stage:
        return stage.makes
    return None
