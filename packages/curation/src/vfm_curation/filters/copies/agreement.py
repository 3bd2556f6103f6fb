"""Measure how well the pixels of two aligned images agree, by the correlations of small blocks of their thumbnails.

Two images of a scene taken a moment apart agree where the points are, and differ where something moved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm_curation.filters.copies.pasted import inverted
from vfm_curation.filters.local_points import THUMBNAIL_SIDE as SIDE, Pixels
from vfm_curation.simd import compiled

STEP = 4  # pixels from a block to the next one
BLOCK = 2 * STEP  # pixels of a side
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
    area = abs(float(np.linalg.det(matrix[:2])))
    if area < 1:
        first, second, matrix = second, first, inverted(matrix)
        area = abs(float(np.linalg.det(matrix[:2])))
    samples = min(MAX_SAMPLES, int(np.ceil(area**0.5)))
    coarse = first.astype(np.float64)
    warped, inside = warped_to(coarse.shape, second.astype(np.float64), np.ascontiguousarray(matrix), samples)
    correlations = np.sort(block_correlations(coarse, warped, inside, GREY_LEVELS))
    if not len(correlations):
        return 1.0
    # np.quantile takes as long as all the rest.
    return float(np.interp(QUANTILE * (len(correlations) - 1), np.arange(len(correlations)), correlations))


@compiled
def warped_to(shape: tuple[int, int], image: Floats, matrix: Floats, samples: int) -> tuple[Floats, Bools]:
    """Compute an image at the pixels of a coarser one, and mark the pixels that are inside of the image.

    The image is interpolated linearly. A pixel that reaches outside is 0.

    Args:
        shape: Height and width of the coarser image.
        image: The finer image.
        matrix: From positions in the coarser image to positions in the finer one, (3, 2).
        samples: Number of samples along a side of a pixel.
    """
    height, width = shape
    values = np.zeros((height, width))
    inside = np.zeros((height, width), np.bool_)
    # From samples to pixels of the image.
    xx, xy = matrix[0, 0] / samples, matrix[0, 1] / samples
    yx, yy = matrix[1, 0] / samples, matrix[1, 1] / samples
    first_x = (xx + yx) / 2 + matrix[2, 0] * SIDE - 0.5
    first_y = (xy + yy) / 2 + matrix[2, 1] * SIDE - 0.5
    for y in range(height):
        for x in range(width):
            start_x = first_x + samples * (x * xx + y * yx)
            start_y = first_y + samples * (x * xy + y * yy)
            value = _mean_of_samples(image, start_x, start_y, xx, xy, yx, yy, samples)
            if value >= 0:
                values[y, x] = value
                inside[y, x] = True
    return values, inside


@compiled
def _mean_of_samples(
    image: Floats, start_x: float, start_y: float, xx: float, xy: float, yx: float, yy: float, samples: int
) -> float:
    """Interpolate an image linearly at a square of places, and compute the mean, -1 if a place is outside."""
    last_y = image.shape[0] - 1
    last_x = image.shape[1] - 1
    total = 0.0
    for down in range(samples):
        for right in range(samples):
            x = start_x + right * xx + down * yx
            y = start_y + right * xy + down * yy
            if not (-0.5 < x < last_x + 0.5 and -0.5 < y < last_y + 0.5):
                return -1.0
            x = 0.0 if x < 0 else last_x if x > last_x else x
            y = 0.0 if y < 0 else last_y if y > last_y else y
            left = int(x)
            top = int(y)
            beside = min(left + 1, last_x)
            below = min(top + 1, last_y)
            x -= left
            upper = image[top, left] * (1 - x) + image[top, beside] * x
            lower = image[below, left] * (1 - x) + image[below, beside] * x
            total += upper + (lower - upper) * (y - top)
    return total / (samples * samples)


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
    # A block has two by two tiles, and neighbours share them.
    rows = first.shape[0] // STEP
    columns = first.shape[1] // STEP
    sums = np.empty((rows, columns, 5))
    known = np.empty((rows, columns), np.bool_)
    best = np.full((rows, columns), -2.0)
    texture = np.zeros((rows, columns))
    for down in range(-SHIFT, SHIFT + 1):
        for right in range(-SHIFT, SHIFT + 1):
            _sum_tiles(first, second, inside, down, right, sums, known)
            for row in range(rows - 1):
                for column in range(columns - 1):
                    if not (known[row, column] and known[row, column + 1]):
                        continue
                    if not (known[row + 1, column] and known[row + 1, column + 1]):
                        continue
                    mean_a = _mean(sums, row, column, 0)
                    mean_b = _mean(sums, row, column, 1)
                    of_a = max(0.0, _mean(sums, row, column, 2) - mean_a**2)
                    of_b = max(0.0, _mean(sums, row, column, 3) - mean_b**2)
                    both = _mean(sums, row, column, 4) - mean_a * mean_b
                    correlation = both / np.sqrt((of_a + noise**2) * (of_b + noise**2))
                    best[row, column] = max(best[row, column], correlation)
                    texture[row, column] = max(texture[row, column], of_a, of_b)
    return best.ravel()[texture.ravel() > noise**2]


@compiled
def _sum_tiles(first: Floats, second: Floats, inside: Bools, down: int, right: int, sums: Floats, known: Bools) -> None:
    """Sum the pixels a of a tile, b of the moved tile, a * a, b * b and a * b, where the moved tile is known."""
    height, width = first.shape
    for row in range(sums.shape[0]):
        for column in range(sums.shape[1]):
            top = row * STEP
            left = column * STEP
            is_known = top + down >= 0 and left + right >= 0
            is_known &= top + down + STEP <= height and left + right + STEP <= width
            sum_a = sum_b = sum_aa = sum_bb = sum_ab = 0.0
            if is_known:
                for y in range(top, top + STEP):
                    for x in range(left, left + STEP):
                        is_known &= inside[y + down, x + right]
                        a = first[y, x]
                        b = second[y + down, x + right]
                        sum_a += a
                        sum_b += b
                        sum_aa += a * a
                        sum_bb += b * b
                        sum_ab += a * b
            known[row, column] = is_known
            for number, total in enumerate((sum_a, sum_b, sum_aa, sum_bb, sum_ab)):
                sums[row, column, number] = total


@compiled
def _mean(sums: Floats, row: int, column: int, number: int) -> float:
    """Compute a mean over the pixels of a block from the sums of its tiles."""
    upper = sums[row, column, number] + sums[row, column + 1, number]
    lower = sums[row + 1, column, number] + sums[row + 1, column + 1, number]
    mean: float = (upper + lower) / (BLOCK * BLOCK)
    return mean
