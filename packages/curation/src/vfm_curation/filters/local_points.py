"""Find points of an image that stay in a copy, each with 256 bits that describe its surroundings.

A descriptor of SIFT becomes the signs of 128 projections, and of the same 128 projections of the mirrored surroundings.
The bits of a mirrored image's point are therefore the halves of the point's bits in exchanged order, so mirrored
copies cost nothing more. The projections are orthogonal to the mean descriptor, so that bits differ between images.
A thumbnail is stored with the points, to see what is around them.

Sources: Lowe 2004, Distinctive Image Features from Scale-Invariant Keypoints; Arandjelovic and Zisserman 2012, Three
things everyone should know to improve object retrieval; Charikar 2002, Similarity Estimation Techniques from Rounding
Algorithms.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.data import splitmix64

# Position and size in units of the longer side, angle in radians. The bits of a half are two words.
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("size", "<f4"), ("angle", "<f4"), ("bits", "<u8", 4)])
MAX_POINTS = 200  # of an image, the ones with the strongest contrast
LEAST_SIDE = 128  # pixels of the longer side of the image that is described
SIDE = 256
CONTRAST = 0.03  # least contrast of a point
NUM_WORDS = 4  # words of a point; two points that look alike agree on one of them
NUM_BITS = 128  # of a half
NOISE_SIDE = 256
THUMBNAIL_SIDE = 64  # pixels of the longer side of a thumbnail

Points = NDArray[np.void]
Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]


def points_of(image: Image.Image) -> Points:
    """Find the points of an image, (num_points,), at most `MAX_POINTS`. A flat image has none."""
    grey = image.convert("L")
    longer = max(grey.size)
    scale = min(SIDE / longer, max(1, LEAST_SIDE / longer))
    if scale != 1:
        method = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
        width, height = (max(8, round(scale * side)) for side in grey.size)
        grey = grey.resize((width, height), method)
    found, descriptors = _sift().detectAndCompute(np.asarray(grey), None)
    points = np.zeros(len(found), POINT)
    if not len(found):
        return points
    unit = max(grey.size)
    values = [(point.pt[0] / unit, point.pt[1] / unit, point.size / unit, np.deg2rad(point.angle)) for point in found]
    for name, column in zip(("x", "y", "size", "angle"), np.array(values).T, strict=True):
        points[name] = column
    points["bits"] = signature(descriptors)
    strength = np.array([point.response for point in found])
    order = np.lexsort((points["angle"], points["y"], points["x"], -strength))
    strongest: Points = points[order[:MAX_POINTS]]
    return strongest


def thumbnail_of(image: Image.Image) -> bytes:
    """Scale an image to a thumbnail: its width and height in a byte each, then its pixels."""
    scale = THUMBNAIL_SIDE / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    grey = image.convert("L").resize((width, height), Image.Resampling.LANCZOS)
    return bytes([width, height]) + grey.tobytes()


def pixels_of(thumbnail: bytes) -> Pixels:
    """Read the pixels of a thumbnail, (height, width)."""
    width, height = thumbnail[:2]
    return np.frombuffer(thumbnail, np.uint8, offset=2).reshape(height, width)


def signature(descriptors: NDArray[np.float32]) -> Words:
    """Compute the bits of descriptors, (num_points, 4).

    They are two words, and two of the mirrored descriptor.
    """
    roots = _roots(descriptors)
    sides = [roots @ _projections(), mirrored(roots) @ _projections()]
    bits: Words = np.packbits(np.concatenate(sides, axis=1) > 0, axis=1).view("<u8")
    return bits


def mirrored(descriptors: Floats) -> Floats:
    """Convert descriptors to the ones of the mirrored image.

    Rows and angles of the histograms are in reverse order.
    """
    rows = descriptors.reshape(-1, 4, 4, 8)[:, ::-1]
    return rows[..., -np.arange(8) % 8].reshape(-1, NUM_BITS)


def words_of(points: Points, width: int) -> tuple[Words, NDArray[np.bool_]]:
    """Cut words of `width` bits from the points' bits, (num_points, NUM_WORDS), and mark the ones of the mirrored half.

    A word is the smaller one of both halves' words, so that a point and its mirrored one have the same words.
    """
    plain = np.empty((len(points), NUM_WORDS), np.uint64)
    reverse = np.empty_like(plain)
    for number in range(NUM_WORDS):
        start = number * NUM_BITS // NUM_WORDS
        plain[:, number] = _cut(points["bits"][:, :2], start, width)
        reverse[:, number] = _cut(points["bits"][:, 2:], start, width)
    names = splitmix64(np.arange(NUM_WORDS, dtype=np.uint64))  # so that words of different numbers differ
    return splitmix64(np.minimum(plain, reverse) ^ names), reverse < plain


def _cut(halves: Words, start: int, width: int) -> Words:
    """Take `width` bits from bit `start` on, where the 128 bits of two words are a ring."""
    first = halves[:, start // 64]
    second = halves[:, 1 - start // 64]
    start %= 64
    if start:
        first = (first >> np.uint64(start)) | (second << np.uint64(64 - start))
    return first & np.uint64(2**width - 1)


def word_width(num_images: int) -> int:
    """Choose the bits of a word, more for more images, so that few images share a word by chance."""
    return min(60, 20 + max(1, num_images).bit_length())


@lru_cache(maxsize=1)
def _sift() -> Any:
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)  # shards are measured in parallel, and each on one core
    return cv2.SIFT_create(MAX_POINTS, contrastThreshold=CONTRAST)


def _roots(descriptors: NDArray[np.float32]) -> Floats:
    sums = descriptors.sum(axis=1, keepdims=True, dtype=np.float64)
    roots: Floats = np.sqrt(descriptors / np.maximum(sums, 1e-9))
    return roots


@lru_cache(maxsize=1)
def _projections() -> Floats:
    """Draw directions, (128, 128), one a column, orthogonal to the mean descriptor of noise of several scales."""
    draw = np.random.RandomState(0)  # its numbers are the same in every version of numpy
    noise = np.zeros((NOISE_SIDE, NOISE_SIDE))
    for side in (4, 8, 16, 32, 64):
        small = Image.fromarray(draw.randint(0, 256, (side, side)).astype(np.uint8))
        noise += np.asarray(small.resize(noise.shape, Image.Resampling.BICUBIC)) / side**0.5
    grey = 255 * (noise - noise.min()) / np.ptp(noise)
    mean = _roots(_sift().detectAndCompute(grey.astype(np.uint8), None)[1]).mean(axis=0)
    directions = draw.standard_normal((NUM_BITS, NUM_BITS))
    orthogonal: Floats = directions - np.outer(mean, mean @ directions) / (mean @ mean)
    return orthogonal
