"""Random crops for semantic segmentation that limit the share of the most frequent class.

Source: the training pipeline of EVA's configurations (`Resize`, `RandomCrop` with `cat_max_ratio`). Here the draws come
from a generator that is passed in.
"""

# H, W height and width of an image, S side of a crop

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.data.annotated import IGNORED
from vfm_eva.dense.augment import Placement

NUM_TRIES = 10  # of a crop; the last one is taken


def draw_crop(
    labels: NDArray[np.integer],
    side: int,
    scale: tuple[float, float],
    flip: float,
    rng: np.random.Generator,
    *,
    max_share: float,
) -> Placement:
    """Draw a resize, a crop and a flip. The crop is drawn again while a single class covers too much of it.

    Args:
        labels: Class of each pixel, negative where it is unlabelled, (H, W).
        side: Side of the crop in pixels, S.
        scale: Smallest and largest length of the image's shorter side, in units of S.
        flip: Probability of a left-right flip.
        rng: Random generator.
        max_share: A class must cover less than this share of the labelled pixels. The tenth crop is always accepted.
    """
    height, width = labels.shape
    low, high = scale
    at, turn = rng.random(2).tolist()
    factor = side * (low + (high - low) * at) / min(width, height)
    resized = (max(1, round(width * factor)), max(1, round(height * factor)))
    placement = Placement((width, height), resized, (0, 0), side, turn < flip)
    for _ in range(NUM_TRIES):
        across, down = rng.random(2).tolist()
        corner = (round(across * max(0, resized[0] - side)), round(down * max(0, resized[1] - side)))
        placement = Placement((width, height), resized, corner, side, turn < flip)
        if largest_share(place_labels(labels, placement)) < max_share:
            break
    return placement


def largest_share(labels: NDArray[np.integer]) -> float:
    """Compute the share of the most frequent class among labelled pixels, 1 if there are fewer than two classes."""
    _, counts = np.unique(labels[labels >= 0], return_counts=True)
    if len(counts) > 1:
        return float(counts.max() / counts.sum())
    return 1.0


def place_labels(labels: NDArray[np.integer], placement: Placement) -> NDArray[np.int64]:
    """Crop labels with nearest-pixel sampling, (H, W) to (S, S). Pixels beyond the image are unlabelled."""
    (left, top), (width, height) = placement.corner, placement.covered
    if placement.flip:
        left = placement.resized[0] - left - width
    across, down = placement.scale
    box = (left / across, top / down, (left + width) / across, (top + height) / down)
    box = (box[0], box[1], min(box[2], labels.shape[1]), min(box[3], labels.shape[0]))
    image = Image.fromarray(labels.astype(np.int32))
    part = np.asarray(image.resize((width, height), Image.Resampling.NEAREST, box=box))
    crop = np.full((placement.side, placement.side), IGNORED, dtype=np.int64)
    crop[:height, :width] = part[:, ::-1] if placement.flip else part
    return crop
