"""Export of segmenters by `torch.export`. Each file is loaded again and compared with the model."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from vfm.base import UserError
from vfm.eval.dense.graph_export import open_graph
from vfm.interfaces import DenseCheckpoint

TOLERANCE = 1e-4  # of the largest value


@torch.no_grad()
def write_dense_program(checkpoint: DenseCheckpoint, directory: Path) -> list[str]:
    """Export a segmenter for any batch, with `model.json` for its classes, input size and normalisation.

    Returns:
        A line with the largest difference between the exported program's outputs and the model's.

    Raises:
        UserError: If the model is a detector, has no graph, or the program's outputs differ.
    """
    graph, file = open_graph(checkpoint, directory, "pt2")
    if not graph.batched:
        raise UserError(
            f"{checkpoint.path}: torch.export cannot express a number of boxes that depends on the image; export the"
            " detector as onnx"
        )
    module = graph.module.eval()
    batch = ({0: torch.export.Dim("batch")},)
    module(graph.examples[:1])  # so that positions of this size are stored, and are constants of the program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own files
        program = torch.export.export(module, (graph.examples[:2],), dynamic_shapes=batch, strict=False)
        torch.export.save(program, file)
        loaded = torch.export.load(file).module()
    worst = 0.0
    for images in (graph.examples[:1], graph.examples):
        for expected, output in zip(_as_tuple(module(images)), _as_tuple(loaded(images)), strict=True):
            worst = max(worst, float((expected - output).abs().max() / expected.abs().max()))
    if not worst <= TOLERANCE:  # also true for NaN
        raise UserError(f"{file.name}: the exported program differs from the model by {worst:.1e} of the largest value")
    return [f"{file.name}: the exported program differs from the model by at most {worst:.1e} of the largest value"]


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
