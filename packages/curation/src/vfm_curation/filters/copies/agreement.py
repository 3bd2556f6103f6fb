"""Measure how well the pixels of two aligned images agree, by the correlations of small blocks of their thumbnails.

Two images of a scene taken a moment apart agree where the points are, and differ where something moved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm_curation.filters.copies.pasted import inverted
from vfm_curation.filters.local_points import THUMBNAIL_SIDE as SIDE, Pixels
from vfm_curation.simd import compiled

BLOCK = 8  # pixels of a side
STEP = 4  # pixels from a block to the next one
SHIFT = 1  # pixels that a block may be moved, since an alignment is not exact
MAX_SAMPLES = 4  # along a side of a pixel of the coarser thumbnail, from the finer one
GREY_LEVELS = 5.0  # standard deviation that is added to a block's, since flat blocks have only noise
QUANTILE = 0.5  # of the blocks may differ more, since texts, logos and frames cover them
MIN_AGREEMENT = 0.63  # of images with the same content; 1 % of damaged copies are below (copies_agreement.py)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def agreement(first: Pixels, second: Pixels, matrix: Floats) -> float:
    """Compute the correlation that most blocks reach, from -1 to 1. It is 1 if no block has any texture.

    Args:
        first: Thumbnail of the first image.
        second: Thumbnail of the second image.
        matrix: From positions in the first image to positions in the second, (3, 2), as in `Alignment`.
    """
    if abs(float(np.linalg.det(matrix[:2]))) < 1:
        first, second, matrix = second, first, inverted(matrix)
    warped, inside = _warped(first, second, matrix)
    correlations = block_correlations(first.astype(np.float64), warped, inside, GREY_LEVELS)
    return float(np.quantile(correlations, QUANTILE)) if len(correlations) else 1.0


def _warped(first: Pixels, second: Pixels, matrix: Floats) -> tuple[Floats, Bools]:
    """Compute the second image at the pixels of the first one, which is coarser, and mark the pixels inside of it."""
    height, width = first.shape
    samples = min(MAX_SAMPLES, int(np.ceil(abs(float(np.linalg.det(matrix[:2]))) ** 0.5)))
    y, x = (np.mgrid[: height * samples, : width * samples] + 0.5) / samples / SIDE
    places = np.stack([x, y], axis=-1) @ matrix[:2] + matrix[2]
    values, inside = _between(second, places * SIDE - 0.5)
    blocks = (height, samples, width, samples)
    return values.reshape(blocks).mean(axis=(1, 3)), np.asarray(inside.reshape(blocks).all(axis=(1, 3)))


def _between(image: Pixels, places: Floats) -> tuple[Floats, Bools]:
    """Interpolate an image linearly at places in pixels, and mark the places inside of it."""
    size = np.array(image.shape[::-1])
    inside = np.asarray(((places > -0.5) & (places < size - 0.5)).all(axis=-1))
    places = np.clip(places, 0, size - 1)
    low = places.astype(np.int64)
    x, y = np.moveaxis(low, -1, 0)
    right, below = np.moveaxis(np.minimum(low + 1, size - 1), -1, 0)
    across, down = np.moveaxis(places - low, -1, 0)
    above = image[y, x] * (1 - across) + image[y, right] * across
    under = image[below, x] * (1 - across) + image[below, right] * across
    return above * (1 - down) + under * down, inside


@compiled
def block_correlations(first: Floats, second: Floats, inside: Bools, noise: float) -> Floats:
    """Compute the correlation of each block of two images of equal size at the best of small shifts, (num_blocks,).

    Blocks are left out that reach outside, or have less texture than noise in both images.

    Args:
        first: First image, (height, width).
        second: Second image, (height, width).
        inside: Which pixels of the second image are known, (height, width).
        noise: Standard deviation of noise.
    """
    height, width = first.shape
    found = np.empty((height // STEP + 1) * (width // STEP + 1))
    number = 0
    area = BLOCK * BLOCK
    for top in range(0, height - BLOCK + 1, STEP):
        for left in range(0, width - BLOCK + 1, STEP):
            best = -2.0
            texture = 0.0
            for down in range(-SHIFT, SHIFT + 1):
                for right in range(-SHIFT, SHIFT + 1):
                    if min(top + down, left + right) < 0:
                        continue
                    if top + down + BLOCK > height or left + right + BLOCK > width:
                        continue
                    known = True
                    sum_a = sum_b = sum_aa = sum_bb = sum_ab = 0.0
                    for y in range(top, top + BLOCK):
                        for x in range(left, left + BLOCK):
                            known &= inside[y + down, x + right]
                            a = first[y, x]
                            b = second[y + down, x + right]
                            sum_a += a
                            sum_b += b
                            sum_aa += a * a
                            sum_bb += b * b
                            sum_ab += a * b
                    if not known:
                        continue
                    of_a = max(0.0, sum_aa / area - (sum_a / area) ** 2)
                    of_b = max(0.0, sum_bb / area - (sum_b / area) ** 2)
                    both = sum_ab / area - sum_a / area * sum_b / area
                    best = max(best, both / np.sqrt((of_a + noise**2) * (of_b + noise**2)))
                    texture = max(texture, of_a, of_b)
            if texture > noise**2:
                found[number] = best
                number += 1
    return found[:number]
