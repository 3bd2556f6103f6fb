"""Read the header of a linear head in a safetensors file, without torch or numpy, for checks before a run."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

from vfm.plugin import UserError


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a file's tensors from its header.

    Raises:
        UserError: If the file does not exist or is not safetensors.
    """
    try:
        with file.open("rb") as stream:
            # The first 8 bytes are the length of the JSON header.
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > 100_000_000:  # the format's own limit
                raise ValueError
            header = json.loads(stream.read(size))
            return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (struct.error, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{file}: not a safetensors file") from None


def head_width(file: Path) -> int:
    """Read the number of features that a head takes from the file's header.

    Raises:
        UserError: If the file does not exist, is not safetensors, or lacks the tensors of a head with one output.
    """
    shapes = shapes_in(file)
    weight = shapes.get("weight", ())
    if not weight or weight[:-1] not in ((), (1,)) or prod(shapes.get("bias", ())) != 1:
        raise UserError(f"{file}: expected `weight`, (D,) or (1, D), and perhaps `bias`, (1,), got {shapes}")
    return int(weight[-1])
