"""Checks that `eval.masked_patches` fits the training run that it evaluates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vfm.plugin import Ref, UserError
from vfm_eva.pretrain.held_out_stages import MaskedPatches
from vfm_eva.pretrain.stages import EvaPretrain
from vfm_eva.targets.parts import EvaTeacher
from vfm_eva.targets.stored import load_targets
from vfm_eva.targets.teacher import load_teacher

__all__ = ["check_held_out", "check_width"]

Known = Callable[[Ref[Any]], Any]


def check_held_out(config: EvaPretrain, known: Known) -> None:
    """Check that evaluations of masked patches have a teacher, with as many channels as the student predicts.

    Args:
        config: The training stage.
        known: Looks up an input, if it exists: `Preflight.artifact` or `Context.load`.

    Raises:
        UserError: If a teacher is missing or its width differs.
    """
    first = config.taught_by[0]
    for evaluation in config.evaluation.tasks:
        if not isinstance(evaluation, MaskedPatches):
            continue
        where = f"evaluation.tasks.{evaluation.name}"
        if evaluation.teacher is None:
            if not first.target.has_features:
                raise UserError(f"{where}: expected a target of a teacher's features, got {first.target.type}")
            if first.targets:
                raise UserError(f"{where}: the training has stored targets; set teacher, whose features they are")
        elif (evaluation.teacher, evaluation.target) != (first.teacher, first.target):
            predicted = _width(first, known)
            width = _width(EvaTeacher(teacher=evaluation.teacher, target=evaluation.target), known)
            if predicted and width:
                check_width(predicted, width, where)


def check_width(predicted: int, width: int, where: str) -> None:
    """Check that a head predicts as many channels as a teacher's features have.

    Args:
        predicted: Channels of the head.
        width: Channels of the features.
        where: Name of the evaluation, for the error.

    Raises:
        UserError: If the check fails.
    """
    if predicted != width:
        raise UserError(f"{where}: its head predicts {predicted} channels, the features of teacher have {width}")


def _width(entry: EvaTeacher, known: Known) -> int | None:
    """Find the number of channels of a target, if it exists."""
    source = known(entry.teacher or entry.targets) if entry.target.has_features else None  # type: ignore[arg-type]
    if source is None:
        return None
    return load_teacher(source, entry.target).width if entry.teacher else load_targets(source).width  # type: ignore[arg-type]
