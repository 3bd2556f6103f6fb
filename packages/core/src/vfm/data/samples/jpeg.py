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


def jpeg_pixels(data: bytes, opened: Image.Image) -> NDArray[np.uint8] | None:
    """Return the pixels of a JPEG of three colours, (H, W, 3); None for another image, or if it must be left to Pillow.

    Args:
        data: the file's bytes.
        opened: the same, opened by Pillow.
    """
    if decode_jpeg is None or opened.format != "JPEG" or opened.mode != "RGB":
        return None
    try:
        pixels: NDArray[np.uint8] = decode_jpeg(data)
    except ValueError:  # it refuses damaged files, of which Pillow decodes what it can
        return None
    return pixels if pixels.shape == (opened.height, opened.width, 3) else None
