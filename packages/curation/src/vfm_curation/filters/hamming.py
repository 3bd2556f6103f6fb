"""Which 64-bit hashes are within a Hamming distance of one another: exactly, without comparing all with all.

Two hashes that differ in d bits agree on all blocks that none of these bits falls into. So whatever is near agrees
somewhere, and only hashes that agree on some choice of blocks need to be compared.

Source: Manku, Jain, Das Sarma 2007, Detecting Near-Duplicates for Web Crawling.
"""

from __future__ import annotations

from itertools import combinations, count, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Bools = NDArray[np.bool_]

BITS = 64
ROW_COST = 30  # of writing and sorting a row, in comparisons of two hashes


def block_masks(distance: int, num_hashes: int) -> list[np.uint64]:
    """Masks such that any two hashes within `distance` agree on all bits of at least one.

    With m blocks there is a mask for each choice of m - distance of them. More blocks mean more masks, each of more
    bits: m is what makes the whole cheapest for so many hashes spread evenly.
    """

    def cost(blocks: int) -> float:
        bits = BITS * (blocks - distance) / blocks
        return comb(blocks, distance) * (ROW_COST + num_hashes / 2**bits)

    number = min(range(distance + 1, distance + 9), key=cost)
    bounds = [round(BITS * block / number) for block in range(number + 1)]
    blocks = [(1 << high) - (1 << low) for low, high in pairwise(bounds)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, number - distance)]


def has_earlier_neighbour(keys: NDArray[np.integer], hashes: Hashes, distance: int) -> Bools:
    """Whether an earlier row with the same key has a hash within the distance, (N,).

    Args:
        keys: sorted, (N,).
        hashes: (N,).
        distance: bits that may differ.
    """
    found = np.zeros(len(keys), dtype=np.bool_)
    rows = np.arange(len(keys))
    for step in count(1):  # each row with the one `step` before it, while that has the same key
        rows = rows[rows >= step]
        rows = rows[keys[rows] == keys[rows - step]]
        if not len(rows):
            return found
        near = np.bitwise_count(hashes[rows] ^ hashes[rows - step]) <= distance
        found[rows[near]] = True
        rows = rows[~near]
    raise AssertionError


def near_any(hashes: Hashes, references: Hashes, distance: int) -> Bools:
    """Whether each hash is within the distance of any reference, (N,)."""
    found = np.zeros(len(hashes), dtype=np.bool_)
    for mask in block_masks(distance, len(references)):
        order = np.argsort(references & mask)
        keys, rows = (references & mask)[order], np.flatnonzero(~found)
        low, high = (np.searchsorted(keys, hashes[rows] & mask, side) for side in ("left", "right"))
        while len(rows):
            left = low < high
            rows, low, high = rows[left], low[left], high[left]
            near = np.bitwise_count(hashes[rows] ^ references[order[low]]) <= distance
            found[rows[near]] = True
            rows, low, high = rows[~near], low[~near] + 1, high[~near]
    return found
