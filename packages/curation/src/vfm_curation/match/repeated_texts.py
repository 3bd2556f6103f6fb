"""Finds texts that share uid, language and index. Their draws are equal, so all of them are kept or none is.

Each shard gives the keys (`vfm.data.text_keys`) that are smallest as numbers. Equal texts have equal keys, so shards
that share many texts share some of these, whatever their order; shards of up to 1,024 texts are compared as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.data import text_keys

KEYS_OF_SHARD = 1024
KEYS_IN_MEMORY = 1 << 20  # over all shards
Keys = NDArray[np.uint64]


def smallest_keys(texts: pa.Table) -> list[int]:
    """Return the smallest keys of a shard's texts, repeated ones included, ascending."""
    keys = keys_of(texts)
    some = np.partition(keys, KEYS_OF_SHARD)[:KEYS_OF_SHARD] if len(keys) > KEYS_OF_SHARD else keys
    smallest: list[int] = np.sort(some).tolist()
    return smallest


def keys_of(texts: pa.Table) -> Keys:
    """Return the key of each text, (num_texts,)."""
    return text_keys(*(texts[column] for column in ("uid", "language", "text_index")))


class RepeatedTexts:
    """Compares the `smallest_keys` of all shards, added in any order."""

    def __init__(self) -> None:
        self._keys, self._shards = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def add(self, shard: int, keys: Sequence[int]) -> None:
        """Add the keys of one shard."""
        self._keys = np.append(self._keys, np.array(keys, np.uint64))
        self._shards = np.append(self._shards, np.full(len(keys), shard))
        if len(self._keys) > 2 * KEYS_IN_MEMORY:
            self._sort()

    def _sort(self) -> None:
        order = np.lexsort((self._shards, self._keys))
        if len(order) > KEYS_IN_MEMORY:  # a whole group of equal keys stays
            order = order[self._keys[order] <= self._keys[order[KEYS_IN_MEMORY - 1]]]
        self._keys, self._shards = self._keys[order], self._shards[order]

    def warning(self, texts_of: Callable[[int], pa.Table], path_of: Callable[[int], str]) -> str | None:
        """Return a line with an example if texts repeat, else None.

        Args:
            texts_of: returns the texts of a shard.
            path_of: returns the path of a shard.
        """
        self._sort()
        later = np.flatnonzero(self._keys[1:] == self._keys[:-1]) + 1
        if not len(later):
            return None
        repeated = np.unique(np.append(later, later - 1))
        one, other = self._shards[later[0] - 1 : later[0] + 1].tolist()
        places = [
            (row["uid"], f"{path_of(shard)} row {row['row']}")
            for shard in dict.fromkeys((one, other))
            for row in _with_key(texts_of(shard), self._keys[later[0]])
        ]
        (uid, first), (_, second) = places[0], places[1]
        return (
            f"{len(repeated)} of {len(self._keys)} compared texts share their uid with another text: {uid!r} is in"
            f" {first} and in {second}; such texts are kept or dropped together, so the number of kept texts may be far"
            " from the expected one: give every sample its own uid"
        )


def _with_key(texts: pa.Table, key: np.uint64) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = texts.filter(pa.array(keys_of(texts) == key)).to_pylist()
    return rows
