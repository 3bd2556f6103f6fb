"""Checks of classifications before a run, without torch; evaluations repeat them once their inputs exist."""

from __future__ import annotations

from typing import Any

from vfm.base import UserError
from vfm.data.prompts.templates import read_sentences, sentences_of
from vfm.eval.base import FeatureEvaluation
from vfm.eval.class_names import _first_difference, check_class_names
from vfm.eval.classify.stages import Classify, LinearProbe, ZeroShot
from vfm.interfaces import Artifact, LabeledDataset, Preflight, Ref, TaggedImages


def check_zero_shot(config: ZeroShot, ctx: Preflight) -> None:
    """Check the class names where the dataset exists."""
    if config.prompts:
        read_sentences(config.prompts)
    if data := ctx.artifact(config.data):
        check_zero_shot_classes(config, data)


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
