"""Read label maps from files with one channel. Its values are classes."""

# H, W height and width

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.data.annotated.records import NOT_ALLOWED
from vfm.data.samples.images import open_image
from vfm.data.samples.sample import BadSample
from vfm.storage import files

RIM_16 = 65_535  # value of unlabelled pixels in a map of 16 bits


def read_map(path: str) -> NDArray[Any]:
    """Read the values of a label map, (H, W). For a palette image these are the indices, not the colours.

    Raises:
        BadSample: If the file is missing, or is not an image with a single channel.
    """
    try:
        image = open_image(files.read_bytes(path), path)
        values = np.asarray(image)
    except Exception:  # a missing file, one that is too large, or any of Pillow's errors on broken bytes
        raise BadSample("missing_label", path) from None
    if values.ndim != 2:
        raise BadSample("missing_label", f"{path}: expected one channel, got {image.mode}")
    if values.dtype == bool:  # one bit per pixel: the values are class indices, not a mask
        return values.astype(np.uint8)
    return values


def check_map(path: str, classes: Sequence[int]) -> tuple[int, int]:
    """Check that each value of a label map has a class, and return its width and height.

    Args:
        path: PNG file.
        classes: Class of each value.

    Raises:
        BadSample: If the file cannot be read, or has a value without a class.
    """
    values = read_map(path)
    for value in np.unique(values).tolist():
        if value == RIM_16:
            continue
        if not 0 <= value < len(classes) or classes[value] == NOT_ALLOWED:
            raise BadSample("unknown_label", f"{path} (value {value})")
    return values.shape[1], values.shape[0]
