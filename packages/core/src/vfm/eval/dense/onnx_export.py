"""Export of models with a dense head to ONNX. Each file is run with onnxruntime and compared with the model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vfm.base import UserError
from vfm.eval.dense.dense_models import load_predictor
from vfm.interfaces import DenseCheckpoint
from vfm.models import GraphExport
from vfm.models.interchange.onnx_export import write_graph

FILE = "model.json"


def check_dense_format(checkpoint: DenseCheckpoint, name: str) -> None:
    """Check the format of an export.

    Raises:
        UserError: If it is not onnx.
    """
    if name != "onnx":
        raise UserError(f"{checkpoint.path}: a model with a dense head is exported as onnx, got {name}")


def write_dense_onnx(checkpoint: DenseCheckpoint, directory: Path) -> list[str]:
    """Export a detector or segmenter, with `model.json` for its classes, input size and normalisation.

    The predictor's `onnx_graph` has the module, from normalised images to its predictions.

    Returns:
        A line with the largest difference between onnxruntime's outputs and the model's.

    Raises:
        UserError: If the predictor has no graph, torch cannot export it, or onnxruntime's outputs differ.
    """
    predictor = load_predictor(checkpoint, torch.device("cpu"))
    if not hasattr(predictor, "onnx_graph"):
        raise UserError(f"{checkpoint.path}: a model of {checkpoint.predictor} has no ONNX graph")
    graph: GraphExport = predictor.onnx_graph()
    directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "tasks": checkpoint.tasks,
        "class_names": checkpoint.class_names,
        "image_size": checkpoint.image_size,
        "mean": predictor.preprocess.mean,
        "std": predictor.preprocess.std,
        "file": f"{graph.name}.onnx",
        "outputs": graph.output_names,
    }
    (directory / FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return [write_graph(graph, directory)]
