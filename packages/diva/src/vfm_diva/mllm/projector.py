"""Reading the projector that LLaVA's pre-training saves, `mm_projector.bin`, to start training from it.

Source: the names are from LLaVA's released trainer: `mm_projector.0` and `mm_projector.2` of an MLP with a GELU
between its two layers (`mlp2x_gelu`).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from vfm.models import load_state_dict
from vfm.plugin import UserError

LAYERS = {"0": "linear_1", "2": "linear_2"}  # LLaVA's names -> transformers'
_KEY = re.compile(r"(^|\.)mm_projector\.(?P<layer>\d+)\.(?P<kind>weight|bias)$")


def read_projector(file: str) -> dict[str, Tensor]:
    """Read the tensors of a projector by their names in transformers' `LlavaMultiModalProjector`.

    Raises:
        UserError: If the file cannot be read, or holds no MLP of two layers.
    """
    tensors: dict[str, Tensor] = {}
    keys = load_state_dict(file)
    for key, tensor in keys.items():
        match = _KEY.search(key)
        if match and match["layer"] in LAYERS:
            tensors[f"{LAYERS[match['layer']]}.{match['kind']}"] = tensor
    if len(tensors) != 2 * len(LAYERS) or len(keys) != len(tensors):
        first = ", ".join(sorted(keys)[:4])
        raise UserError(f"{file}: expected the two layers of mm_projector (mlp2x_gelu), got {first}")
    return tensors


def load_projector(projector: nn.Module, file: str) -> None:
    """Load the file of a projector into the model's, in place.

    Raises:
        UserError: If its widths are not the widths of the tower and the language model.
    """
    tensors = read_projector(file)
    expected = projector.state_dict()
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            sizes = f"{tuple(expected[name].shape)} for this tower and language model, got {tuple(tensor.shape)}"
            raise UserError(f"{file}: {name}: expected {sizes}")
    with torch.no_grad():
        projector.load_state_dict(tensors)
