"""Check whether two images show the same content, by the points that agree on one transformation.

Every pair of points that look alike proposes a similarity: their sizes give its scale and their angles its rotation.
The one with which most pairs agree is refined to an affine map, which also covers another aspect. No draw is needed.

Source: Lowe 2004, Distinctive Image Features from Scale-Invariant Keypoints, section 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm_curation.filters.local_points import Points
from vfm_curation.simd import compiled, num_bits

MAX_BITS = 76  # of 256 that may differ between two points that look alike
MIN_POINTS = 8  # pairs of points that agree
MIN_COVERAGE = 0.25  # of the points' extent in one of the images: equal logos and texts are no copies
CELLS = 5  # a side: the extent is divided into 25 cells
LOOSE = 0.06  # largest error of a pair's position, in longer sides, for a similarity
TIGHT = 0.02  # and for an affine map
MAX_STRETCH = 2.0  # of one axis against the other

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Alignment:
    """Transformation from the first image to the second.

    The image is mirrored or not, rotated by degrees, scaled, and moved. The matrix, (3, 2), maps (x, y, 1) in longer
    sides of the first image to positions in longer sides of the second.
    """

    num_points: int
    coverage: float
    mirrored: bool
    degrees: float
    scale: float
    matrix: Floats


def align(first: Points, second: Points) -> Alignment | None:
    """Find the transformation from the first image to the second, if they show the same content."""
    both = [_aligned(first, second, mirror=mirror) for mirror in (False, True)]
    alignments = [alignment for alignment in both if alignment]
    return max(alignments, key=lambda alignment: alignment.num_points, default=None)


def _aligned(first: Points, second: Points, *, mirror: bool) -> Alignment | None:
    bits = second["bits"]
    if mirror:
        bits = bits[:, [2, 3, 0, 1]]
    partners = nearest(np.ascontiguousarray(first["bits"]), np.ascontiguousarray(bits), MAX_BITS)
    chosen = np.flatnonzero(partners >= 0)
    ours = _geometry(first[chosen])
    theirs = _geometry(second[partners[chosen]])
    agree = agreeing(ours, theirs, mirror, LOOSE)
    matrix: NDArray[np.floating[Any]] = np.zeros((3, 2))
    # Fit an affine map to the points that agree, select the points by the fit, and fit again.
    for _ in range(2):
        if agree.sum() < MIN_POINTS:
            return None
        ones = np.ones((int(agree.sum()), 1))
        matrix = np.linalg.lstsq(np.hstack([ours[agree, :2], ones]), theirs[agree, :2], rcond=None)[0]
        errors = np.linalg.norm(ours[:, :2] @ matrix[:2] + matrix[2] - theirs[:, :2], axis=1)
        agree = errors < TIGHT * max(1.0, abs(float(np.linalg.det(matrix[:2]))) ** 0.5)
    # A copy is scaled about equally in both directions, and not sheared.
    stretches = np.linalg.svd(matrix[:2], compute_uv=False)
    turned = (np.linalg.det(matrix[:2]) < 0) == mirror
    covered = max(coverage(first, ours[agree]), coverage(second, theirs[agree]))
    if agree.sum() < MIN_POINTS or not turned or stretches[0] > MAX_STRETCH * stretches[1] or covered < MIN_COVERAGE:
        return None
    degrees = float(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0] * (-1 if mirror else 1))))
    scale = float(np.sqrt(stretches.prod()))
    return Alignment(
        int(agree.sum()), covered, mirror, -degrees if mirror else degrees, scale, matrix.astype(np.float64)
    )


def _geometry(points: Points) -> Floats:
    """Collect x, y, size, angle, (num_points, 4)."""
    return np.stack([points[name] for name in ("x", "y", "size", "angle")], axis=1).astype(np.float64)


def coverage(points: Points, agreeing_points: Floats) -> float:
    """Compute the share of cells of the points' extent that have an agreeing point."""
    if not len(agreeing_points):
        return 0.0
    positions = np.stack([points["x"], points["y"]], axis=1)
    low = positions.min(axis=0)
    high = positions.max(axis=0)
    cells = (CELLS * (agreeing_points[:, :2] - low) / np.maximum(high - low, 1e-9)).astype(np.int64)
    cells = np.minimum(cells, CELLS - 1)
    return len(np.unique(cells @ [1, CELLS])) / CELLS**2


@compiled
def nearest(first: NDArray[np.uint64], second: NDArray[np.uint64], most: int) -> Integers:
    """Find for each point of the first image the one of the second that is nearest, each to the other, or -1.

    Args:
        first: Bits, (num_points, 4).
        second: Bits of the other image, (num_others, 4).
        most: Largest number of differing bits.
    """
    partner = np.full(len(first), -1, np.int64)
    least = np.full(len(second), most + 1, np.int64)
    back = np.full(len(second), -1, np.int64)
    for i in range(len(first)):
        fewest = np.int64(most + 1)
        for j in range(len(second)):
            differing = np.int64(0)
            for word in range(4):
                differing += np.int64(num_bits(first[i, word] ^ second[j, word]))
            if differing < fewest:
                fewest = differing
                partner[i] = j
            if differing < least[j]:
                least[j] = differing
                back[j] = i
    for i in range(len(first)):
        if partner[i] >= 0 and back[partner[i]] != i:
            partner[i] = -1
    return partner


@compiled
def agreeing(first: Floats, second: Floats, mirror: bool, tolerance: float) -> Bools:
    """Find the largest set of pairs of points that agree with the similarity of a pair, (num_pairs,).

    Args:
        first: x, y, size, angle of the first point of each pair, (num_pairs, 4).
        second: The same of the second point.
        mirror: Whether the second image is mirrored.
        tolerance: Largest error of a position, in longer sides of the larger image.
    """
    number = len(first)
    flip = -1.0 if mirror else 1.0
    turns = np.empty(number)
    scales = np.empty(number)
    for pair in range(number):
        # A mirror turns an angle a into pi - a.
        turns[pair] = second[pair, 3] - (np.pi - first[pair, 3] if mirror else first[pair, 3])
        scales[pair] = second[pair, 2] / first[pair, 2]
    best = np.zeros(number, np.bool_)
    most = 0
    agree = np.zeros(number, np.bool_)
    for pair in range(number):
        # Take the rotation and scale of this pair as a hypothesis, and count the pairs that agree with it.
        cosine = scales[pair] * np.cos(turns[pair])
        sine = scales[pair] * np.sin(turns[pair])
        limit = (tolerance * max(1.0, scales[pair])) ** 2
        count = 0
        for other in range(number):
            # The offset from the pair's point, transformed, must lead to the other point in the second image.
            x = flip * (first[other, 0] - first[pair, 0])
            y = first[other, 1] - first[pair, 1]
            error_x = second[pair, 0] + cosine * x - sine * y - second[other, 0]
            error_y = second[pair, 1] + sine * x + cosine * y - second[other, 1]
            ratio = scales[other] / scales[pair]
            near = error_x * error_x + error_y * error_y < limit
            agree[other] = near and 0.6 < ratio < 1.67 and np.cos(turns[other] - turns[pair]) > 0.8
            count += agree[other]
        if count > most:
            most = count
            best[:] = agree
    return best
