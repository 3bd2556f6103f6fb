"""Read the shapes of a network's layers in a safetensors file, without torch or numpy, for checks before a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vfm.plugin import UserError
from vfm_curation.filters.linear_head import shapes_in


@dataclass(frozen=True)
class Layer:
    """A linear layer of a file.

    It has the names of its tensors, and the numbers of input and output features.
    """

    weight: str
    bias: str | None
    width: int
    outputs: int


def layers_of(file: Path) -> list[Layer]:
    """List the layers of a network in the order of the numbers in their names.

    Raises:
        UserError: If the file does not exist, is not safetensors, or its layers do not fit together and end in one
            output.
    """
    shapes = shapes_in(file)
    layers = list[Layer]()
    names = [name for name in shapes if name.endswith("weight") and len(shapes[name]) == 2]
    # By numbers, so that layer 10 comes after layer 2.
    for name in sorted(names, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)]):
        bias = f"{name.removesuffix('weight')}bias"
        outputs, width = shapes[name]
        if shapes.get(bias, (outputs,)) != (outputs,):
            raise UserError(f"{file}: expected {bias} of {outputs} numbers, got {shapes[bias]}")
        if layers and layers[-1].outputs != width:
            raise UserError(f"{file}: {name} takes {width} features, the layer before it gives {layers[-1].outputs}")
        layers.append(Layer(name, bias if bias in shapes else None, width, outputs))
    if not layers or layers[-1].outputs != 1:
        raise UserError(f"{file}: expected layers NAME.weight, (out, in), the last with one output, got {shapes}")
    return layers
