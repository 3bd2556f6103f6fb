"""Find images that may show the same content, by an inverted index of the words of their points on disk.

Points that share a word meet in a bucket, and each pair of their images gets a vote for a rotation and a scale. Two
votes that agree make a candidate. Memory holds a bucket, whatever the number of images.

Source: Jegou, Douze, Schmid 2008, Hamming Embedding and Weak Geometric Consistency for Large Scale Image Search.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data import splitmix64
from vfm_curation.filters.copies.buckets import Buckets, num_buckets
from vfm_curation.filters.local_points import MAX_POINTS, NUM_WORDS, POINT, Points, Words, word_width, words_of
from vfm_curation.simd import compiled

# Of an image, below which an alignment may fail: drawings, logos. With 16, 32 and 64 the filter finds 1,549, 1,549 and
# 1,550 of 1,560 copies, and joins 0, 0 and 1 of 3.2 million pairs of different images by hashes (copies_bounds.py).
FEW_POINTS = 32
LEADERS = 16  # images of a word that each further image is compared with: the best ones
VOTE_BUCKETS = 4  # for each bucket of words: most votes are for a pair of images that share one word by chance
MIN_COSINE = 0.9  # of the difference of the rotations of two votes that agree
MAX_RATIO = 1.5  # of their scales

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


def candidate_pairs(
    images: Iterable[tuple[Integers, pa.ChunkedArray]], num_images: int, folder: Path, num_references: int = 0
) -> Integers:
    """Find pairs of images that may show the same content.

    Args:
        images: Tables of images: their ranks, 0 for the best, and their points as bytes.
        num_images: Number of all images.
        folder: Folder for the index. It must not exist.
        num_references: If not 0, only pairs of a reference and another image. References are the first images by rank.

    Returns:
        (num_pairs, 2), ascending. A row has the better rank, then the other.
    """
    width = word_width(num_images)
    number = num_buckets(num_images * MAX_POINTS * NUM_WORDS)
    index = Buckets(folder / "words", number)
    for ranks, points in images:
        _add(index, ranks, points, width)
    votes = Buckets(folder / "votes", VOTE_BUCKETS * number)
    for table in index:
        ordered = table.sort_by([("word", "ascending"), ("rank", "ascending")])
        pairs, turns, scales, mirrors = votes_of(
            ordered["word"].to_numpy(),
            ordered["rank"].to_numpy(),
            ordered["size"].to_numpy(),
            ordered["angle"].to_numpy(),
            ordered["mirrored"].to_numpy(),
            num_references,
        )
        voted = {"pair": pairs, "turn": turns, "scale": scales, "mirrored": mirrors}
        votes.add(pa.table(voted), splitmix64(pairs) % votes.number)
    parts = []
    for table in votes:
        ordered = table.sort_by([("pair", "ascending"), ("turn", "ascending"), ("scale", "ascending")])
        columns = [ordered[name].to_numpy() for name in ("pair", "turn", "scale", "mirrored")]
        parts.append(np.unique(columns[0][agree_on_one(*columns)]))
    pairs = np.sort(np.concatenate([np.zeros(0, np.uint64), *parts]))
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(2**32 - 1)], axis=1).astype(np.int64)


def _add(index: Buckets, ranks: Integers, stored: pa.ChunkedArray, width: int) -> None:
    """Add a row for each word of each point."""
    every = [points_from(points) for points in stored.to_pylist()]
    points = np.concatenate([np.zeros(0, POINT), *every])
    words, mirrored = words_of(points, width)
    owners = np.repeat(ranks, [len(some) for some in every])
    table = {"word": words.ravel(), "rank": np.repeat(owners, NUM_WORDS), "mirrored": mirrored.ravel()}
    table |= {name: np.repeat(points[name], NUM_WORDS) for name in ("size", "angle")}
    index.add(pa.table(table), words.ravel() % np.uint64(index.number))


def points_from(stored: bytes | None) -> Points:
    """Read points as the column `points` stores them. An image that cannot be read has none."""
    return np.frombuffer(stored or b"", POINT)


def have_few(stored: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Mark the images with so few points that they are compared by the hashes of their variants too, (num_images,)."""
    few: NDArray[np.bool_] = pc.less(pc.binary_length(stored), FEW_POINTS * POINT.itemsize).to_numpy()
    return few


@compiled
def votes_of(
    words: Words, ranks: Integers, sizes: Floats, angles: Floats, mirrored: NDArray[np.bool_], num_references: int
) -> tuple[Words, Floats, Floats, NDArray[np.bool_]]:
    """Let each two points with one word vote for their images.

    Of the images with a word only the best `LEADERS` are compared with all others.

    Args:
        words: Word of each point. Points are sorted by word and rank.
        ranks: Rank of its image.
        sizes: Its size.
        angles: Its angle.
        mirrored: Whether it is a point of the mirrored image.
        num_references: As in `candidate_pairs`.

    Returns:
        Pair of ranks, rotation, scale, and whether mirrored, for each vote.
    """
    room = 1024
    pairs = np.empty(room, np.uint64)
    turns = np.empty(room, np.float32)
    scales = np.empty(room, np.float32)
    mirrors = np.empty(room, np.bool_)
    number = 0
    leaders = np.empty(LEADERS, np.int64)
    num_leaders = 0
    for row in range(len(words)):
        if row and words[row] != words[row - 1]:
            num_leaders = 0
        if number + LEADERS > room:
            room *= 2
            pairs = np.append(pairs, np.empty_like(pairs))
            turns = np.append(turns, np.empty_like(turns))
            scales = np.append(scales, np.empty_like(scales))
            mirrors = np.append(mirrors, np.empty_like(mirrors))
        for position in range(num_leaders):
            leader = leaders[position]
            if ranks[leader] == ranks[row] or ranks[row] < num_references:
                continue
            mirror = mirrored[leader] != mirrored[row]
            turn = angles[row] - (np.pi - angles[leader] if mirror else angles[leader])
            pairs[number] = np.uint64(ranks[leader]) << np.uint64(32) | np.uint64(ranks[row])
            turns[number] = turn
            scales[number] = sizes[row] / sizes[leader]
            mirrors[number] = mirror
            number += 1
        is_new = num_leaders == 0 or ranks[leaders[num_leaders - 1]] != ranks[row]
        if is_new and num_leaders < LEADERS and (num_references == 0 or ranks[row] < num_references):
            leaders[num_leaders] = row
            num_leaders += 1
    return pairs[:number], turns[:number], scales[:number], mirrors[:number]


@compiled
def agree_on_one(pairs: Words, turns: Floats, scales: Floats, mirrored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark votes that agree with a different earlier vote for their pair.

    Two points that share several words vote several times for the same. This counts once.

    Args:
        pairs: Pair of each vote, ascending.
        turns: Rotation of each vote.
        scales: Scale of each vote.
        mirrored: Whether the vote is for a mirrored image.

    Returns:
        (num_votes,).
    """
    agree = np.zeros(len(pairs), np.bool_)
    start = 0
    for row in range(len(pairs)):
        if row and pairs[row] != pairs[row - 1]:
            start = row
        for other in range(start, row):
            same = turns[row] == turns[other] and scales[row] == scales[other]
            ratio = scales[row] / scales[other]
            near = np.cos(turns[row] - turns[other]) > MIN_COSINE and 1 / MAX_RATIO < ratio < MAX_RATIO
            if near and not same and mirrored[row] == mirrored[other]:
                agree[row] = True
                break
    return agree
