"""The common part of exports of models with a dense head: the formats, and the facts about a model for its user."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vfm.base import UserError
from vfm.eval.dense.dense_models import load_predictor
from vfm.interfaces import DenseCheckpoint
from vfm.models import GraphExport

FILE = "model.json"
FORMATS = ("onnx", "pt2")  # `vfm.api.exporting` names their writers


def check_dense_format(checkpoint: DenseCheckpoint, name: str) -> None:
    """Check the format of an export.

    Raises:
        UserError: If models with a dense head are not exported in it.
    """
    if name not in FORMATS:
        expected = " or ".join(FORMATS)
        raise UserError(f"{checkpoint.path}: a model with a dense head is exported as {expected}, got {name}")


def open_graph(checkpoint: DenseCheckpoint, directory: Path, ending: str) -> tuple[GraphExport, Path]:
    """Load the graph of a model, from normalised images to its predictions, and write `model.json` for its user.

    Args:
        checkpoint: The model.
        directory: Folder of the export.
        ending: Ending of the exported file.

    Returns:
        The graph, and the file to write.

    Raises:
        UserError: If the model's predictor has no graph.
    """
    predictor = load_predictor(checkpoint, torch.device("cpu"))
    if not hasattr(predictor, "onnx_graph"):
        raise UserError(f"{checkpoint.path}: a model of {checkpoint.predictor} cannot be exported")
    graph: GraphExport = predictor.onnx_graph()
    file = directory / f"{graph.name}.{ending}"
    facts = {
        "tasks": checkpoint.tasks,
        "class_names": checkpoint.class_names,
        "image_size": checkpoint.image_size,
        "mean": predictor.preprocess.mean,
        "std": predictor.preprocess.std,
        "file": file.name,
        "outputs": graph.output_names,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return graph, file
