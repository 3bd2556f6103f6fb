"""Perceptual hashes of images, and exact search for hashes within a Hamming distance without comparing all pairs.

Two hashes that differ in d bits agree on all blocks that contain none of these bits. Near hashes therefore agree
somewhere, and only hashes that agree on some choice of blocks need to be compared.

Sources: Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions; Manku, Jain, Das Sarma 2007,
Detecting Near-Duplicates for Web Crawling.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

BITS = 64
ROW_COST = 30  # cost of writing and sorting a row, in comparisons of two hashes
SIDE, LOW = 32, 8
# Margins to cut, as fractions of the width and height: left, top, right, bottom. A crop, or the picture within a frame,
# and the picture above a caption; the fractions are between those of `benchmarks/copies.py`, which measures them.
CUTS = (*((cut, cut, cut, cut) for cut in (0.04, 0.08, 0.12)), *((0.0, 0.0, 0.0, cut) for cut in (0.07, 0.11, 0.15)))
NUM_VARIANTS = 7 + len(CUTS)
# The first LOW rows of the DCT-II matrix: the lowest frequencies.
WAVES = np.cos(np.pi / SIDE * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5))


def phash(image: Image.Image) -> int:
    """Return which of an image's 64 lowest frequencies are above their median, as 64 bits; the lowest is the first.

    Images that look alike differ in few bits; all images of a single colour have the same hash. The bits are those of
    the package `imagehash`.
    """
    return _bits(_waves(image.convert("L")))


def variant_hashes(image: Image.Image) -> list[int]:
    """Return the hashes of what a copy may show: the image turned or mirrored (7), or cut (6).

    A flip of the image changes the signs of half of its frequencies and a transposition exchanges their axes, so the
    eight orientations need one transform.
    """
    grey = image.convert("L")
    waves, signs = _waves(grey), (-1.0) ** np.arange(LOW)
    turned = [
        axes * down * across
        for axes in (waves, waves.T)
        for down in (1.0, signs[:, None])
        for across in (1.0, signs[None, :])
    ]
    return [_bits(one) for one in (*turned[1:], *(_waves(grey, cut) for cut in CUTS))]


def _waves(grey: Image.Image, cut: Sequence[float] = (0, 0, 0, 0)) -> Floats:
    """Return the lowest frequencies of a grey image without some of its margins, (LOW, LOW)."""
    left, top, right, bottom = cut
    box = (left * grey.width, top * grey.height, (1 - right) * grey.width, (1 - bottom) * grey.height)
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box), dtype=np.float64)
    waves: Floats = (WAVES @ small @ WAVES.T).round(6)  # so that rounding errors in a flat image's zeros set no bits
    return waves


def _bits(waves: Floats) -> int:
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def block_masks(distance: int, num_hashes: int) -> list[np.uint64]:
    """Return masks such that any two hashes within `distance` agree on all bits of at least one.

    With m blocks there is a mask for each choice of m - distance of them. More blocks mean more masks, each of more
    bits; m is chosen to minimise the total cost for this many uniformly distributed hashes.
    """

    def cost(blocks: int) -> float:
        bits = BITS * (blocks - distance) / blocks
        return comb(blocks, distance) * (ROW_COST + num_hashes / 2**bits)

    number = min(range(distance + 1, distance + 9), key=cost)
    bounds = [round(BITS * block / number) for block in range(number + 1)]
    blocks = [(1 << high) - (1 << low) for low, high in pairwise(bounds)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, number - distance)]


class HashIndex:
    """Finds hashes that are near to any of some references. Memory holds 4 bytes for each reference and mask."""

    def __init__(self, references: Hashes, distance: int) -> None:
        """Sort the references by each choice of their blocks."""
        self.references, self.distance = references, distance
        self.masks = block_masks(distance, len(references))
        self.orders = [np.argsort(references & mask).astype(np.uint32) for mask in self.masks]

    def near(self, hashes: Hashes) -> Bools:
        """Return whether each hash is within the distance of any reference, (N,)."""
        found = np.zeros(len(hashes), dtype=np.bool_)
        for mask, order in zip(self.masks, self.orders, strict=True):
            keys, rows = (self.references & mask)[order], np.flatnonzero(~found)
            # The references that agree on the mask's bits are order[low:high]; each round compares one of them.
            low, high = (np.searchsorted(keys, hashes[rows] & mask, side) for side in ("left", "right"))
            while len(rows):
                left = low < high
                rows, low, high = rows[left], low[left], high[left]
                near = np.bitwise_count(hashes[rows] ^ self.references[order[low]]) <= self.distance
                found[rows[near]] = True
                rows, low, high = rows[~near], low[~near] + 1, high[~near]
        return found
