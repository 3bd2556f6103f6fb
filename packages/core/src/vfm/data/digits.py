"""scikit-learn's handwritten digits as pictures.

Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), the part that scikit-learn carries.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ["a photo of the number {}.", "a handwritten digit {}."]
NUM_TRAIN = 898  # the first half, as in scikit-learn's own examples


def digits(split: Literal["train", "test"]) -> list[tuple[Image.Image, int]]:
    """Pictures of 8 x 8 pixels, white on black, each with its digit."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = slice(None, NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, None)
    greys = np.rint(found.images[rows] * (255 / 16)).astype(np.uint8)  # (N, 8, 8) of 0 to 16
    return [
        (Image.fromarray(grey).convert("RGB"), int(label))
        for grey, label in zip(greys, found.target[rows], strict=True)
    ]
