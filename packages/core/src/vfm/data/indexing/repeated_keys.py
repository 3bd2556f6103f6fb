"""Finds keys that several shards share: tars that number their samples from 000000 each, or two crawls in one pool.

A key identifies its sample; where keys repeat, each begins with the name of its shard (`DatasetSpec.keys_repeat`).
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
from vfm.data.tables.parquet import DAMAGE

NUM_COMPARED = 16  # of the first keys of a shard, and of those with the smallest hashes


@dataclass(frozen=True)
class KeySample:
    """Some keys of a shard with their hashes: the first ones, and if all are known those with the smallest hashes."""

    first: list[tuple[int, str]]
    smallest: list[tuple[int, str]]

    @classmethod
    def of(cls, keys: Sequence[str], *, all_known: bool) -> KeySample:
        """Return the sample of a shard's keys, which are all its keys or the first ones."""
        first = [(_hash(key), key) for key in keys[:NUM_COMPARED]]
        return cls(first, nsmallest(NUM_COMPARED, ((_hash(key), key) for key in keys)) if all_known else [])


class RepeatedKeys:
    """Compares some keys of each shard with those of all others, in 16 to 32 hashes a shard.

    The first keys meet if shards count from one number, also if some samples are missing. If all keys of a shard are
    known, those with the smallest hashes are compared too: they meet in shards that share many keys in any order.
    """

    def __init__(self) -> None:
        self.example: tuple[str, str, str] | None = None
        """The first key that was found twice, and the paths of its two shards."""
        self._shard_of: dict[int, str] = {}  # hash of a key -> path of its shard

    def add(self, path: str, keys: KeySample) -> None:
        """Compare the keys of one more shard."""
        if self.example:
            return
        # A set would also merge a key that one shard has twice, so only the same entry of both lists is left out.
        for value, key in chain(keys.first, (one for one in keys.smallest if one not in keys.first)):
            earlier = self._shard_of.setdefault(value, path)
            if earlier != path or keys.first.count((value, key)) > 1:
                self.example = (key, earlier, path)
                return


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def own_keys(reader: ShardReader) -> Sequence[str]:
    """Return all keys or the first ones of a shard that stores them.

    What cannot be read here is reported when the samples are read.
    """
    try:
        return reader.own_keys(NUM_COMPARED)
    except (UserError, *DAMAGE):
        return []


def first_keys(shard: Shard, spec: DatasetSpec) -> Sequence[str]:
    """Return the first keys of a shard that is not read otherwise."""
    try:
        return own_keys(shard_format(shard.format).open(shard, spec, Opening(limit=NUM_COMPARED)))
    except (UserError, *DAMAGE):
        return []
