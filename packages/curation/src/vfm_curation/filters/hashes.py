"""Perceptual hashes of images, and exact search for hashes within a Hamming distance without comparing all pairs.

Two hashes that differ in d bits agree on all blocks that contain none of these bits. Near hashes therefore agree
somewhere, and only hashes that agree on some choice of blocks need to be compared.

Sources: Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions; Manku, Jain, Das Sarma 2007,
Detecting Near-Duplicates for Web Crawling.
"""

from __future__ import annotations

from itertools import combinations, count, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes = NDArray[np.uint64]
Bools = NDArray[np.bool_]

BITS = 64
ROW_COST = 30  # cost of writing and sorting a row, in comparisons of two hashes
SIDE, LOW = 32, 8
# The first LOW rows of the DCT-II matrix: the lowest frequencies.
WAVES = np.cos(np.pi / SIDE * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5))


def phash(image: Image.Image) -> int:
    """Return which of an image's 64 lowest frequencies are above their median, as 64 bits; the lowest is the first.

    Images that look alike differ in few bits; all images of a single colour have the same hash. The bits are those of
    the package `imagehash`.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    waves = (WAVES @ grey @ WAVES.T).round(6)  # rounded, so that rounding errors in a flat image's zeros set no bits
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


def has_earlier_neighbour(keys: NDArray[np.integer], hashes: Hashes, distance: int) -> Bools:
    """Return whether an earlier row with the same key has a hash within the distance, (N,).

    Args:
        keys: sorted, (N,).
        hashes: (N,).
        distance: bits that may differ.
    """
    found = np.zeros(len(keys), dtype=np.bool_)
    rows = np.arange(len(keys))
    for step in count(1):  # compare each row with the one `step` before it, as long as that has the same key
        rows = rows[rows >= step]
        rows = rows[keys[rows] == keys[rows - step]]
        if not len(rows):
            return found
        near = np.bitwise_count(hashes[rows] ^ hashes[rows - step]) <= distance
        found[rows[near]] = True
        rows = rows[~near]
    raise AssertionError


def near_any(hashes: Hashes, references: Hashes, distance: int) -> Bools:
    """Return whether each hash is within the distance of any reference, (N,)."""
    found = np.zeros(len(hashes), dtype=np.bool_)
    for mask in block_masks(distance, len(references)):
        order = np.argsort(references & mask)
        keys, rows = (references & mask)[order], np.flatnonzero(~found)
        # The references that agree on the mask's bits are order[low:high]; one of them is compared in each round.
        low, high = (np.searchsorted(keys, hashes[rows] & mask, side) for side in ("left", "right"))
        while len(rows):
            left = low < high
            rows, low, high = rows[left], low[left], high[left]
            near = np.bitwise_count(hashes[rows] ^ references[order[low]]) <= distance
            found[rows[near]] = True
            rows, low, high = rows[~near], low[~near] + 1, high[~near]
    return found
