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
        name: Name of the file.
        module: Module in evaluation mode, from a tensor to a tensor or several.
        input_name: Name of the input.
        output_names: Names of the outputs.
        examples: Three or more inputs.
        batched: Any number of images. False: one image, and a number of predictions that depends on it.
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
