"""Find keys that several shards share, as in tars that all number their samples from 000000.

A key identifies its sample. If keys repeat, each key begins with the name of its shard (`DatasetSpec.keys_repeat`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain

from vfm.base import UserError
from vfm.data.samples.shards import Opening, Shard, ShardReader, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.parquet_files import DAMAGE

NUM_COMPARED = 16  # first keys of a shard, and keys with the smallest hashes


@dataclass(frozen=True)
class KeySample:
    """Some keys of a shard with their hashes.

    They are the first keys, and the smallest hashes if all keys are known.
    """

    first: list[tuple[int, str]]
    smallest: list[tuple[int, str]]

    @classmethod
    def of(cls, keys: Sequence[str], *, all_known: bool) -> KeySample:
        """Sample the keys of a shard, given all its keys or the first ones."""
        hashed = [(_hash(key), key) for key in (keys if all_known else keys[:NUM_COMPARED])]
        return cls(hashed[:NUM_COMPARED], nsmallest(NUM_COMPARED, hashed) if all_known else [])


class RepeatedKeys:
    """Compares 16 to 32 keys of each shard with the keys of all other shards.

    Comparing the first keys finds shards that count from the same number, even if some samples are missing. If all keys
    of a shard are known, comparing the smallest hashes also finds shards that share many keys in any order.
    """

    def __init__(self) -> None:
        self.example: tuple[str, str, str] | None = None
        """First key that was found twice, and the paths of its two shards."""
        self._shard_of: dict[int, str] = {}  # hash of a key -> path of its shard

    def add(self, path: str, keys: KeySample) -> None:
        """Compare the keys of another shard."""
        if self.example:
            return
        # Not a set, which would merge a key that a shard has twice. Entries that are in both lists count only once.
        for value, key in chain(keys.first, (entry for entry in keys.smallest if entry not in keys.first)):
            earlier = self._shard_of.setdefault(value, path)
            if earlier != path or keys.first.count((value, key)) > 1:
                self.example = (key, earlier, path)
                return


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def own_keys(reader: ShardReader) -> Sequence[str]:
    """Read all keys, or the first keys, of a shard that stores them.

    Errors are ignored here, because they are reported when the samples are read.
    """
    try:
        return reader.own_keys(NUM_COMPARED)
    except (UserError, *DAMAGE):
        return []


def first_keys(shard: Shard, spec: DatasetSpec) -> Sequence[str]:
    """Read the first keys of a shard that is not read otherwise."""
    try:
        return own_keys(shard_format(shard.format).open(shard, spec, Opening(limit=NUM_COMPARED)))
    except (UserError, *DAMAGE):
        return []
