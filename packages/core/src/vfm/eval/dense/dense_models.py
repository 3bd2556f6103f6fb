"""Load the models of a dense evaluation, evaluate them, and write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vfm.base import load_function
from vfm.data.annotated import AnnotatedSource
from vfm.eval.dense.checks import check_dense_data, check_dense_model
from vfm.eval.dense.stages import DenseEvaluation
from vfm.eval.encode.evaluation import report_models
from vfm.interfaces import AnnotatedImages, Context, DenseCheckpoint, Evaluated, Report, find_predictor

Predictors = Mapping[str, Any]  # each a predictor of the task


def evaluate_dense(config: DenseEvaluation, ctx: Context) -> Report:
    """Evaluate models and files of predictions on the same images, and write the report."""
    data = _load_data(config, ctx)

    def load(name: str, checkpoint: DenseCheckpoint, device: torch.device) -> Any:
        check_dense_model(config, checkpoint.tasks, checkpoint.class_names, data, name)
        return load_predictor(checkpoint, device)

    return report_models(config, ctx, load, lambda models: _evaluate(config, ctx, data, models))


def evaluate_predictors(config: DenseEvaluation, ctx: Context, models: Predictors) -> Evaluated:
    """Evaluate loaded models, such as a model in training.

    Raises:
        UserError: If the data lack the labels for the evaluation, or too many images cannot be read.
    """
    return _evaluate(config, ctx, _load_data(config, ctx), models)


def load_predictor(checkpoint: DenseCheckpoint, device: torch.device) -> Any:
    """Load a model with the function named in its artifact. It is a predictor for all tasks of the checkpoint.

    Raises:
        UserError: If no installed stage declares that function.
    """
    return find_predictor(checkpoint)(checkpoint, device)


def _load_data(config: DenseEvaluation, ctx: Context) -> AnnotatedImages:
    data = ctx.load(config.data)
    check_dense_data(config, data)
    return data


def _evaluate(config: DenseEvaluation, ctx: Context, data: AnnotatedImages, models: Predictors) -> Evaluated:
    evaluate: Callable[..., Evaluated] = load_function(config.evaluator)
    return evaluate(config, ctx, AnnotatedSource(data), models)
