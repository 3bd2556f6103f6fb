"""Reads a linear head from a safetensors file: one weight for each feature, and a bias."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vfm.plugin import UserError


def head_width(file: Path) -> int:
    """Return the number of features that a head takes, from the file's header.

    Raises:
        UserError: the file does not exist, is not safetensors, or has not the tensors of a head with one output.
    """
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > 100_000_000:  # the format's own limit
                raise ValueError
            header = json.loads(stream.read(size))
            shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (struct.error, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{file}: not a safetensors file") from None
    weight = shapes.get("weight", ())
    if not weight or weight[:-1] not in ((), (1,)) or prod(shapes.get("bias", ())) != 1:
        raise UserError(f"{file}: expected `weight`, (D,) or (1, D), and perhaps `bias`, (1,), got {shapes}")
    return int(weight[-1])


def read_head(file: Path) -> tuple[NDArray[np.float32], np.float32]:
    """Return the weight, (D,), and the bias of a head.

    Raises:
        UserError: as `head_width`.
    """
    from safetensors.torch import load_file  # of the extra `clip`; numpy's reader has no bf16

    width = head_width(file)
    tensors = {name: tensor.float().numpy() for name, tensor in load_file(file).items()}
    bias = tensors["bias"].item() if "bias" in tensors else 0.0
    return tensors["weight"].reshape(width), np.float32(bias)
