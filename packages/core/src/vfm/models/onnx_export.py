"""Models as ONNX, any batch size, each file run by onnxruntime beside the model itself before it is believed."""

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
import onnxscript  # noqa: F401  (torch's exporter needs it: missing, it is named before anything is done)
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.config import UserError
from vfm.models.clip import ClipModel, eval_mode
from vfm.models.model_sources import first_line
from vfm.models.vision import vision_preprocess

Part = tuple[str, Callable[[Any, Tensor], Any], list[str], list[str], Tensor]  # name, function, inputs, outputs, x
TOLERANCE = 1e-3  # of the largest value: what float32 in another order may cost, with room
ONE_FILE = 1_800_000_000  # bytes; protobuf holds 2 GB, beyond that weights lie in a file beside


class _Part(nn.Module):
    """A function of a module as a module, since the exporter takes no other."""

    def __init__(self, module: nn.Module, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.module, x)


def write_onnx(model: ClipModel | nn.Module, directory: Path) -> list[str]:
    """Writes `image.onnx` and `text.onnx` of a CLIP model, or `vision.onnx` of an encoder, and `model.json`.

        image.onnx    pixels float32 (B, 3, S, S), normalised   ->  embedding (B, D) of unit length
        text.onnx     tokens int64 (B, L)                       ->  embedding (B, D) of unit length
        vision.onnx   pixels float32 (B, 3, S, S), normalised   ->  features or logits (B, D), tokens as timm has them

    `model.json` says how a picture becomes pixels, and the temperature of a CLIP model.

    Returns:
        A line for each file, with the largest difference of its outputs from the model's.

    Raises:
        UserError: torch cannot export the model, or onnxruntime computes something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(model, ClipModel):
        facts: dict[str, Any] = {
            "model": model.name,
            "preprocess": model.preprocess.model_dump(),
            "context_length": model.context_length,
            "logit_scale": model.module.logit_scale.exp().item(),  # type: ignore[operator]
        }
        if (bias := getattr(model.module, "logit_bias", None)) is not None:
            facts["logit_bias"] = bias.item()
        texts = ["a photo", "a longer line of words", "!"]
        parts: list[Part] = [
            ("image", _image, ["pixels"], ["embedding"], _noise(model.preprocess.image_size)),
            ("text", _text, ["tokens"], ["embedding"], model.tokenize(texts)),
        ]
        module = model.module
    else:
        preprocess = vision_preprocess(model)
        facts = {"model": model.pretrained_cfg["architecture"], "preprocess": preprocess.model_dump()}  # type: ignore[index]
        outputs = ["logits" if model.num_classes else "features", "tokens"]
        parts = [("vision", _vision, ["pixels"], outputs, _noise(preprocess.image_size))]
        module = model
    (directory / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    with eval_mode(module):
        return [
            _write(_Part(module, function).eval(), directory / f"{name}.onnx", inputs, outputs, x)
            for name, function, inputs, outputs, x in parts
        ]


def _image(module: Any, pixels: Tensor) -> Tensor:
    return F.normalize(module.encode_image(pixels), dim=-1)


def _text(module: Any, tokens: Tensor) -> Tensor:
    return F.normalize(module.encode_text(tokens), dim=-1)


def _vision(module: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    tokens = module.forward_features(pixels)
    return module.forward_head(tokens), tokens


def _noise(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def _write(part: nn.Module, file: Path, inputs: list[str], outputs: list[str], x: Tensor) -> str:
    """Exports a part with a batch of two, and compares it with batches of one and three."""
    size = sum(value.numel() * value.element_size() for value in part.state_dict().values())
    try:
        with _quiet():
            torch.onnx.export(
                part,
                (x[:2],),
                file,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=size > ONE_FILE,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # tracing fails in as many ways as there are models
        raise UserError(f"{file.name}: torch cannot export this model: {first_line(error)}") from None
    worst = parity(part, file, inputs[0], [x[:1], x])
    if not worst <= TOLERANCE:
        raise UserError(f"{file.name}: onnxruntime differs from torch by {worst:.1e} of the largest value; not written")
    return f"{file.name}: onnxruntime differs from torch by at most {worst:.1e} of the largest value"


def parity(part: nn.Module, file: Path, name: str, batches: list[Tensor]) -> float:
    """The largest difference between a file run by onnxruntime and the module, as a share of the largest value."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for x in batches:
        with torch.inference_mode():
            ours = part(x)
        theirs = session.run(None, {name: x.numpy()})
        for one, other in zip(ours if isinstance(ours, tuple) else (ours,), theirs, strict=True):
            gap = float(np.abs(one.numpy() - other).max() / max(float(one.abs().max()), 1e-12))
            worst = gap if np.isnan(gap) else max(worst, gap)
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporter says about itself from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
