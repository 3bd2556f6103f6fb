"""Export to ONNX for any batch size. Each file is run with onnxruntime and compared with the model."""

# B batch, S side of the image, L context length, D width

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401  (needed by torch's exporter: if it is missing, fail before any work)
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.clip.model_sources import first_line
from vfm.models.encoders import eval_mode
from vfm.models.interchange.onnx_graph import GraphExport, random_images
from vfm.models.vision.vision import vision_preprocess

TOLERANCE = 1e-3  # relative to the largest value: float32 in another order of operations differs less, with a margin
_ERRORS = onnxruntime.capi.onnxruntime_pybind11_state
RUN_ERRORS = (_ERRORS.Fail, _ERRORS.InvalidArgument)
MAX_SINGLE_FILE = 1_800_000_000  # bytes; protobuf is limited to 2 GB, so larger weights are stored in a second file


class _AsModule(nn.Module):
    """A module whose `forward` is a function of another module, since the exporter only accepts modules."""

    def __init__(self, module: nn.Module, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.module, x)


def write_onnx(model: ClipModel | nn.Module, directory: Path) -> list[str]:
    """Export `image.onnx` and `text.onnx` of a CLIP model, or `vision.onnx` of an encoder, and `model.json`.

        image.onnx    pixels float32 (B, 3, S, S), normalised   ->  embedding (B, D) of unit length
        text.onnx     tokens int64 (B, L)                       ->  embedding (B, D) of unit length
        vision.onnx   pixels float32 (B, 3, S, S), normalised   ->  features or logits (B, D), tokens as in timm

    `model.json` holds the preprocessing, and the temperature of a CLIP model.

    Returns:
        A line for each file, with the largest difference between its outputs and the model's.

    Raises:
        UserError: If torch cannot export the model, or onnxruntime's outputs differ.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(model, ClipModel):
        facts: dict[str, Any] = {
            "model": model.name,
            "preprocess": model.preprocess.model_dump(),
            "context_length": model.context_length,
            "logit_scale": model.module.logit_scale.exp().item(),  # type: ignore[operator]
        }
        bias = getattr(model.module, "logit_bias", None)
        if bias is not None:
            facts["logit_bias"] = bias.item()
        texts = model.tokenize(["a photo", "a longer line of words", "!"])
        graphs = [
            GraphExport(
                "image",
                _AsModule(model.module, _image),
                "pixels",
                ["embedding"],
                random_images(model.preprocess.image_size),
            ),
            GraphExport("text", _AsModule(model.module, _text), "tokens", ["embedding"], texts),
        ]
        module = model.module
    else:
        preprocess = vision_preprocess(model)
        facts = {"model": model.pretrained_cfg["architecture"], "preprocess": preprocess.model_dump()}  # type: ignore[index]
        outputs = ["logits" if model.num_classes else "features", "tokens"]
        graphs = [
            GraphExport("vision", _AsModule(model, _vision), "pixels", outputs, random_images(preprocess.image_size))
        ]
        module = model
    (directory / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    with eval_mode(module):
        return [write_graph(graph, directory) for graph in graphs]


def _image(module: Any, pixels: Tensor) -> Tensor:
    return F.normalize(module.encode_image(pixels), dim=-1)


def _text(module: Any, tokens: Tensor) -> Tensor:
    return F.normalize(module.encode_text(tokens), dim=-1)


def _vision(module: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    tokens = module.forward_features(pixels)
    return module.forward_head(tokens), tokens


def write_graph(graph: GraphExport, directory: Path) -> str:
    """Export a module with two examples, or with one if it takes single images, and compare it on all examples.

    Returns:
        A line with the largest difference between onnxruntime's outputs and the module's.

    Raises:
        UserError: If torch cannot export the module, or onnxruntime's outputs differ.
    """
    file = directory / f"{graph.name}.onnx"
    module = graph.module.eval()
    x = graph.examples
    batches = [x[:1], x] if graph.batched else list(x[:, None])
    num_bytes = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    try:
        with _quiet():
            names: dict[str, Any] = {"input_names": [graph.input_name], "output_names": graph.output_names}
            names |= {"external_data": num_bytes > MAX_SINGLE_FILE, "verbose": False}
            if graph.batched:
                dynamic = ({0: torch.export.Dim("batch")},)
                torch.onnx.export(module, (x[:2],), file, dynamic_shapes=dynamic, dynamo=True, **names)
            else:
                # The number of predictions depends on the image, which only the exporter by tracing can express.
                axes = {name: {0: "predictions"} for name in graph.output_names}
                with torch.no_grad():
                    module(x[:1])  # so that positions of this size are stored, and are constants of the graph
                torch.onnx.export(module, (x[:1],), file, dynamic_axes=axes, dynamo=False, opset_version=17, **names)
    except Exception as error:  # tracing raises many types of exceptions
        raise UserError(f"{file.name}: torch cannot export this model: {first_line(error)}") from None
    try:
        worst = largest_difference(module, file, graph.input_name, batches)
    except RUN_ERRORS as error:
        raise UserError(f"{file.name}: onnxruntime cannot run this model: {first_line(error)}") from None
    if not worst <= TOLERANCE:  # also true for NaN
        raise UserError(
            f"{file.name}: onnxruntime differs from torch by {worst:.1e} of the largest value, which is too much"
        )
    return f"{file.name}: onnxruntime differs from torch by at most {worst:.1e} of the largest value"


def largest_difference(module: nn.Module, file: Path, input_name: str, batches: list[Tensor]) -> float:
    """Compute the largest difference between onnxruntime's and the module's outputs, relative to the largest value.

    Args:
        module: The module.
        file: The exported file.
        input_name: Name of its input.
        batches: Inputs to compare on.
    """
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for x in batches:
        with torch.inference_mode():
            ours = module(x)
        theirs = session.run(None, {input_name: x.numpy()})
        outputs = ours if isinstance(ours, tuple) else (ours,)
        for expected, actual in zip(outputs, theirs, strict=True):
            num_rows = min(len(expected), len(actual))
            # At the threshold of the score, rounding may add a prediction.
            if tuple(expected.shape[1:]) != actual.shape[1:] or max(len(expected), len(actual)) > num_rows + 1:
                return float("inf")
            expected, actual = expected[:num_rows], actual[:num_rows]
            if not num_rows:
                continue
            largest = max(float(expected.abs().max()), 1e-12)
            difference = float(np.abs(expected.numpy() - actual).max() / largest)
            worst = difference if np.isnan(difference) else max(worst, difference)  # `max` would drop NaN
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log and warnings within the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
