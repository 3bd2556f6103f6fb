"""The work that dense evaluations share: load the models, evaluate, write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vfm.artifacts import AnnotatedImages, DenseCheckpoint, Report
from vfm.config import load_function
from vfm.data.annotated import AnnotatedSource
from vfm.eval.evaluation import write_report
from vfm.interfaces.dense import DensePredictor
from vfm.scores import Evaluated
from vfm.stage import Context
from vfm.stages.evaluation.base import short_name
from vfm.stages.evaluation.checks import check_dense_data, check_dense_model
from vfm.stages.evaluation.dense import DenseEvaluation
from vfm.train import prepare_device

Predictors = Mapping[str, DensePredictor]


def evaluate_dense(config: DenseEvaluation, ctx: Context) -> Report:
    """Load the models, evaluate them and the files of predictions on the same images, and write the report."""
    data: AnnotatedImages = ctx.load(config.data)
    check_dense_data(config, data)
    checkpoints = {short_name(ref): ctx.load(ref) for ref in config.models}
    for name, checkpoint in checkpoints.items():
        check_dense_model(config, checkpoint, data, name)
    device = prepare_device(config.runtime)
    models = {name: load_predictor(checkpoint, device) for name, checkpoint in checkpoints.items()}
    evaluate: Callable[..., Evaluated] = load_function(config.evaluator)
    return write_report(config, ctx, evaluate(config, ctx, AnnotatedSource(data), models), checkpoints)


def load_predictor(checkpoint: DenseCheckpoint, device: torch.device) -> DensePredictor:
    """Load a model by the function that its artifact names."""
    predictor: Any = load_function(checkpoint.predictor)(checkpoint, device)
    return predictor  # type: ignore[no-any-return]
