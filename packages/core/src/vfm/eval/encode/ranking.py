"""Rank of the best correct item of each query, in bounded memory, for zero-shot classification and retrieval."""

# N queries, M items, D width

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_SCORES = 16_000_000  # scores held at once: 64 MB in fp32, three times as much while ranks are counted


def tie_width(width: int) -> float:
    """Compute the difference below which two fp32 cosines of `width` terms tie.

    The order of summation in a dot product depends on the device, the library and the block, and changes the result
    by about eps * sqrt(width). Without a tolerance it would decide the ranks of duplicates and of a collapsed model.
    """
    return float(torch.finfo(torch.float32).eps * math.sqrt(width))


def row_blocks(num_rows: int, num_columns: int, max_scores: int = MAX_SCORES) -> Iterator[slice]:
    """Yield slices of rows whose block fits into memory.

    Args:
        num_rows: Number of rows.
        num_columns: Number of columns.
        max_scores: Largest number of numbers in a block. A block has at least one row.
    """
    return slices(num_rows, max(1, max_scores // max(1, num_columns)))


def slices(length: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` items each, and a last one with the rest."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def best_ranks(
    queries: Tensor, items: Tensor, query_groups: Tensor, item_groups: Tensor, *, max_scores: int = MAX_SCORES
) -> NDArray[np.int64]:
    """Count for each query the wrong items that score at least as high as its best correct item: 0 is a hit at 1.

    An item is correct for a query if both have the same group. Ties count against the query, so a model whose
    features all collapsed onto one point scores 0. A query with a NaN score is ranked last. Memory is a few times
    `max_scores` numbers, as the (N, M) score matrix is never held.

    Args:
        queries: Unit vectors, (N, D).
        items: Unit vectors, (M, D), on the same device.
        query_groups: (N,) integers.
        item_groups: (M,) integers.
        max_scores: Number of scores held at once.

    Returns:
        Ranks counted from 0, (N,).

    Raises:
        ValueError: If a query has no right item.
    """
    missing = ~torch.isin(query_groups, item_groups)
    if bool(missing.any()):
        raise ValueError(f"{int(missing.sum())} queries have no right item, the first is {int(missing.nonzero()[0])}")
    ranks = np.empty(len(queries), dtype=np.int64)
    tie = tie_width(queries.shape[1])
    for block in row_blocks(len(queries), len(items), max_scores):
        scores = queries[block] @ items.T  # (rows, M)
        right = query_groups[block, None] == item_groups[None]
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        # "Not lower" instead of "at least", so that a NaN on either side counts against the query.
        count = (~(scores < best - tie)).logical_and_(~right).sum(dim=1)
        ranks[block] = torch.where(best[:, 0].isnan(), len(items), count).cpu().numpy()
    return ranks


def hits_at(ranks: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Check for each query whether a correct item is among its first results.

    Args:
        ranks: Rank of the best correct item, from 0, (N,).
        k: Number of first results.

    Returns:
        (N,).
    """
    return ranks < k


def label_ranks(scores: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """Count the other classes that score at least as high as the true one.

    As in `best_ranks`, ties count against the model, and an image with a NaN for its true class is ranked last.

    Args:
        scores: (N, C).
        labels: True class of each image, (N,).

    Returns:
        (N,).
    """
    true_scores = scores.gather(1, labels[:, None])  # (N, 1)
    count = (~(scores < true_scores)).sum(dim=1) - 1  # without the true class itself
    return torch.where(true_scores[:, 0].isnan(), scores.shape[1], count).cpu().numpy()
