"""Decoding JPEG with simplejpeg (the extra `jpeg`), which is faster than Pillow and gives the same pixels.

Both bundle libjpeg-turbo with its accurate transform and smooth upsampling, which a test compares. Without the extra,
and for what simplejpeg refuses, Pillow decodes, so a result does not depend on what is installed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    from simplejpeg import decode_jpeg
except ImportError:
    decode_jpeg = None

REDUCTIONS = (8, 4)  # halves are as slow to decode as whole pictures, whose transform is vectorised better


def is_rgb_jpeg(opened: Image.Image) -> bool:
    """Return whether an image that Pillow opened is a JPEG of three colours."""
    return opened.format == "JPEG" and opened.mode == "RGB"


def jpeg_pixels(data: bytes, opened: Image.Image, reduction: int = 1) -> NDArray[np.uint8] | None:
    """Return the pixels of a JPEG of three colours, (H, W, 3); None for another image, or if it must be left to Pillow.

    Args:
        data: the file's bytes.
        opened: the same, opened by Pillow.
        reduction: decode at 1, 1/4 or 1/8 of the size, by leaving out the high frequencies of each block.
    """
    if decode_jpeg is None or not is_rgb_jpeg(opened):
        return None
    width, height = (-(-side // reduction) for side in opened.size)
    try:  # the size asked for is that of the reduction; `strict` refuses damaged files
        pixels: NDArray[np.uint8] = decode_jpeg(data, min_height=height, min_width=width, min_factor=reduction)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None
