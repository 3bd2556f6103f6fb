"""Perceptual hashes of images, and exact search for hashes within a Hamming distance without comparing all pairs.

Two hashes that differ in d bits agree on all blocks that contain none of these bits. Near hashes therefore agree
somewhere, and only hashes that agree on some choice of blocks need to be compared.

Sources: Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions; Manku, Jain, Das Sarma 2007,
Detecting Near-Duplicates for Web Crawling.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

BITS = 64
LEAST_QUALITY = 50  # of PDQ, of 100
ROW_COST = 30  # cost of writing and sorting a row, in comparisons of two hashes
SIDE, LOW = 32, 8  # pixels that are transformed, and frequencies that are kept, a side
# Margins to cut, as fractions of the width and height: left, top, right, bottom. A crop, or the image within a frame,
# and the image above a caption. The fractions lie between the ones in `benchmarks/copies.py`, which measures them.
CUTS = (*((cut, cut, cut, cut) for cut in (0.04, 0.08, 0.12)), *((0.0, 0.0, 0.0, cut) for cut in (0.07, 0.11, 0.15)))
NUM_VARIANTS = 7 + len(CUTS)
# The first LOW rows of the DCT-II matrix: the lowest frequencies.
WAVES = np.cos(np.pi / SIDE * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5))


def phash(image: Image.Image) -> int:
    """Compute a perceptual hash of 64 bits.

    A bit says whether one of the lowest frequencies is above their median, lowest first. Images that look alike differ
    in few bits. All images of a single colour have the same hash. The bits are equal to the ones from the package
    `imagehash`.
    """
    return _bits(_waves(image.convert("L")))


def variant_hashes(image: Image.Image) -> list[int]:
    """Hash the forms that a copy may have.

    The image is turned or mirrored (7), or cut (6). A flip of the image changes the signs of half of its frequencies
    and a transposition exchanges their axes, so the eight orientations need one transform.
    """
    grey = image.convert("L")
    waves = _waves(grey)
    signs = (-1.0) ** np.arange(LOW)
    turned: list[Floats] = []
    for axes in (waves, waves.T):
        # A flip changes the signs of every second frequency, a transposition exchanges the axes.
        for down in (1.0, signs[:, None]):
            turned += [axes * down * across for across in (1.0, signs[None, :])]
    cut_waves = [_waves(grey, cut) for cut in CUTS]
    return [_bits(variant) for variant in (*turned[1:], *cut_waves)]  # the first is the image itself


def _waves(grey: Image.Image, cut: Sequence[float] = (0, 0, 0, 0)) -> Floats:
    """Compute the lowest frequencies of a grey image without some of its margins, (LOW, LOW)."""
    left, top, right, bottom = cut
    box = (left * grey.width, top * grey.height, (1 - right) * grey.width, (1 - bottom) * grey.height)
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box), dtype=np.float64)
    waves: Floats = (WAVES @ small @ WAVES.T).round(6)  # so that rounding errors in a flat image's zeros set no bits
    return waves


def pdq(image: Image.Image) -> bytes | None:
    """Compute Meta's PDQ, 256 bits as 32 bytes.

    Source: Facebook 2019, PDQ and TMK + PDQF, github.com/facebook/ThreatExchange. It sets the least quality to 50.

    Returns:
        The hash, or None for an image of too little detail, because its hash means nothing.
    """
    bits, quality = import_module("pdqhash").compute(np.asarray(image.convert("RGB")))
    return np.packbits(bits).tobytes() if quality >= LEAST_QUALITY else None


def _bits(waves: Floats) -> int:
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def block_masks(distance: int, num_hashes: int) -> list[np.uint64]:
    """Choose masks such that any two hashes within `distance` agree on all bits of at least one mask.

    With m blocks there is a mask for each choice of m - distance of them. More blocks mean more masks, each of more
    bits. m is chosen to minimise the total cost for this many uniformly distributed hashes.
    """

    def cost(blocks: int) -> float:
        bits = BITS * (blocks - distance) / blocks
        return comb(blocks, distance) * (ROW_COST + num_hashes / 2**bits)

    # With d + b blocks, d changed bits leave b blocks untouched. More blocks mean fewer candidates for a mask, but many
    # more masks.
    number = min(range(distance + 1, distance + 9), key=cost)
    bounds = [round(BITS * block / number) for block in range(number + 1)]
    blocks = [(1 << high) - (1 << low) for low, high in pairwise(bounds)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, number - distance)]


class HashIndex:
    """Index that finds hashes near to any of some references. It takes 4 bytes for each reference and mask."""

    def __init__(self, references: Hashes, distance: int) -> None:
        """Sort the references by each choice of their blocks."""
        self.references = references
        self.distance = distance
        self.masks = block_masks(distance, len(references))
        self.orders = [np.argsort(references & mask).astype(np.uint32) for mask in self.masks]

    def near(self, hashes: Hashes) -> Bools:
        """Check whether each hash is within the distance of any reference, (N,)."""
        is_near = np.zeros(len(hashes), dtype=np.bool_)
        for mask, order in zip(self.masks, self.orders, strict=True):
            keys = (self.references & mask)[order]
            rows = np.flatnonzero(~is_near)
            # The references that agree on the mask's bits are order[low:high]; each round compares one of them.
            low = np.searchsorted(keys, hashes[rows] & mask, "left")
            high = np.searchsorted(keys, hashes[rows] & mask, "right")
            while len(rows):
                left = low < high
                rows, low, high = rows[left], low[left], high[left]
                near = np.bitwise_count(hashes[rows] ^ self.references[order[low]]) <= self.distance
                is_near[rows[near]] = True
                rows = rows[~near]
                low = low[~near] + 1
                high = high[~near]
        return is_near
