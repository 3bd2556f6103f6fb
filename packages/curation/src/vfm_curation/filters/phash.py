"""A 64-bit hash of what a picture looks like: pictures that look alike differ in few bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE, LOW = 32, 8
# Rows of the DCT-II's matrix for its LOW slowest waves.
WAVES = np.cos(np.pi / SIDE * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5))


def phash(image: Image.Image) -> int:
    """Which of a picture's 64 slowest waves are above their median; the first wave is the highest bit.

    A picture of one colour has the hash of all such pictures.

    Source: Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions; bits as `imagehash` has
    them.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    waves = (WAVES @ grey @ WAVES.T).round(6)  # rounded, so that the noise of a flat picture's zeros makes no bits
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")
