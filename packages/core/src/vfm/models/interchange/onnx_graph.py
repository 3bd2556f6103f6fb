"""Description of an ONNX file, which a model gives without importing onnxruntime."""

# S side of an image

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GraphExport:
    """Description of an ONNX file.

    Attributes:
        name: name of the file.
        module: module in evaluation mode, from a tensor to a tensor or several.
        input_name: name of the input.
        output_names: names of the outputs.
        examples: three or more inputs.
        batched: any number of images. False: one image, and a number of predictions that depends on it.
    """

    name: str
    module: nn.Module
    input_name: str
    output_names: list[str]
    examples: Tensor
    batched: bool = True


def random_images(size: int) -> Tensor:
    """Draw three random images, (3, 3, S, S)."""
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
