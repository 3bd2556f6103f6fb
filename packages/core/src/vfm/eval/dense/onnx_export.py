"""Export of models with a dense head to ONNX. Each file is run with onnxruntime and compared with the model."""

from __future__ import annotations

from pathlib import Path

from vfm.eval.dense.graph_export import open_graph
from vfm.interfaces import DenseCheckpoint
from vfm.models.interchange.onnx_export import write_graph


def write_dense_onnx(checkpoint: DenseCheckpoint, directory: Path) -> list[str]:
    """Export a detector or segmenter, with `model.json` for its classes, input size and normalisation.

    Returns:
        A line with the largest difference between onnxruntime's outputs and the model's.

    Raises:
        UserError: If the predictor has no graph, torch cannot export it, or onnxruntime's outputs differ.
    """
    graph, _ = open_graph(checkpoint, directory, "onnx")
    return [write_graph(graph, directory)]
