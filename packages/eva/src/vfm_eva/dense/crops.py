"""Random crops for semantic segmentation: of a label map and its picture, with at most a share of one class.

Source: the training pipeline of EVA's configurations (`Resize`, `RandomCrop` with `cat_max_ratio`), drawn here from a
generator that is passed in.
"""

# H, W height and width of a picture, S side of a crop

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.data.annotated import IGNORED
from vfm_eva.dense.augment import Placement

NUM_TRIES = 10


def draw_crop(
    labels: NDArray[np.integer],
    side: int,
    scale: tuple[float, float],
    flip: float,
    rng: np.random.Generator,
    *,
    max_share: float,
) -> Placement:
    """Draw a resize, a crop and a flip; the crop is drawn anew while one class has too much of it.

    Args:
        labels: class of each pixel, negative where it is unlabelled, (H, W).
        side: S.
        scale: smallest and largest length of the picture's shorter side, in S.
        flip: probability of a left-right flip.
        rng: random generator.
        max_share: most that one class may have of the labelled pixels; the last of ten crops is kept whatever it has.
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
    """Return the share of the labelled pixels that the most frequent class has; 1 if there are fewer than two."""
    _, counts = np.unique(labels[labels >= 0], return_counts=True)
    return float(counts.max() / counts.sum()) if len(counts) > 1 else 1.0


def place_labels(labels: NDArray[np.integer], placement: Placement) -> NDArray[np.int64]:
    """Return the labels of a crop by the nearest pixel, unlabelled beyond the picture, (H, W) to (S, S)."""
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
