"""Find texts that share uid, language and index. Their draws are equal, so all of them are kept or none is.

Each shard contributes its numerically smallest keys (`vfm.data.text_keys`). Equal texts have equal keys, so shards that
share many texts share some of these, whatever their order. Shards of up to 1,024 texts are compared as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.data import text_keys
from vfm_curation.uids import hash_uids

KEYS_OF_SHARD = 1024  # the smallest ones are the same sample of texts in every shard
KEYS_IN_MEMORY = 1 << 20  # over all shards
Keys = NDArray[np.uint64]


def smallest_keys(keys: Keys) -> list[int]:
    """Select the smallest keys of a shard's texts, including repeated ones, ascending."""
    if len(keys) > KEYS_OF_SHARD:
        some = np.partition(keys, KEYS_OF_SHARD)[:KEYS_OF_SHARD]
    else:
        some = keys
    smallest: list[int] = np.sort(some).tolist()
    return smallest


def keys_of(texts: pa.Table) -> Keys:
    """Compute the key of each text, (num_texts,)."""
    return text_keys(texts["uid"], texts["language"], texts["text_index"], hash_uids)


class RepeatedTexts:
    """Comparison of the `smallest_keys` of all shards. Shards are added in any order."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.uint64)
        self._shards = np.zeros(0, np.int64)
        self._added: list[tuple[Keys, int]] = []  # (keys, shard), joined only when they are many
        self._num_added = 0
        self._largest = np.iinfo(np.uint64).max  # larger keys cannot be among the smallest any more

    def add(self, shard: int, keys: Sequence[int]) -> None:
        """Add the keys of a shard."""
        new = np.array(keys, np.uint64)
        self._added.append((new[new <= self._largest], shard))
        self._num_added += len(self._added[-1][0])
        if self._num_added > KEYS_IN_MEMORY:
            self._sort()

    def _sort(self) -> None:
        keys = np.concatenate([self._keys, *(new for new, _ in self._added)])
        shards = np.concatenate([self._shards, *(np.full(len(new), shard) for new, shard in self._added)])
        order = np.lexsort((shards, keys))
        if len(order) > KEYS_IN_MEMORY:  # a whole group of equal keys stays
            self._largest = keys[order[KEYS_IN_MEMORY - 1]]
            order = order[keys[order] <= self._largest]
        self._keys, self._shards = keys[order], shards[order]
        self._added, self._num_added = [], 0

    def warning(self, texts_of: Callable[[int], pa.Table], path_of: Callable[[int], str]) -> str | None:
        """Write a line with an example if texts repeat, else return None.

        Args:
            texts_of: Returns the texts of a shard.
            path_of: Returns the path of a shard.
        """
        self._sort()
        later = np.flatnonzero(self._keys[1:] == self._keys[:-1]) + 1
        if not len(later):
            return None
        repeated = np.unique(np.append(later, later - 1))
        shard, next_shard = self._shards[later[0] - 1 : later[0] + 1].tolist()
        examples = []
        for number in dict.fromkeys((shard, next_shard)):
            rows = _with_key(texts_of(number), self._keys[later[0]])
            examples += [(row["uid"], f"{path_of(number)} row {row['row']}") for row in rows]
        (uid, first), (_, second) = examples[0], examples[1]
        return (
            f"{len(repeated)} of {len(self._keys)} compared texts share their uid with another text: {uid!r} is in"
            f" {first} and in {second}; such texts are kept or dropped together, so the number of kept texts may be far"
            " from the expected one: give every sample its own uid"
        )


def _with_key(texts: pa.Table, key: np.uint64) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = texts.filter(pa.array(keys_of(texts) == key)).to_pylist()
    return rows
