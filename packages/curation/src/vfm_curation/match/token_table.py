"""Tables for matching texts of languages with spaces: built from entries, saved, memory-mapped.

An entry of k pieces (split at single spaces, empty ones kept) is in a text exactly if its pieces are k consecutive
tokens of it, so runs of tokens are looked up by a key of 63 bits. Building the tables checks that no two runs that
begin entries share a key. A run of a text that is in no entry may still share the key of an entry, for each look-up
with a probability of num_runs / 2^63: 0.01 false matches in 10^10 captions against 500,000 entries. `verify` compares
bytes and leaves none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.plugin import UserError, store_files
from vfm_curation.match.perfect_hash import perfect_hash
from vfm_curation.match.token_hash import (
    LOW_SIX,
    NO_ENTRY,
    ONE,
    PAD,
    SIX,
    SPACE,
    ZERO,
    Bytes,
    HashTables,
    Words,
    longer_key,
    match_texts,
    token_key,
)
from vfm_curation.simd import compiled, high_product
from vfm_curation.text_counts import text_buffers

U = np.uint64
BITS_PER_RUN = 4  # a filter of which at most a quarter is set


class TokenTable:
    """Matcher for texts with spaces between words, the fast equivalent of `vfm_curation.matching.Matcher`."""

    def __init__(self, tables: HashTables) -> None:
        self.tables = tables

    @classmethod
    def build(cls, entries: Sequence[str], ids: Sequence[int] | NDArray[np.integer[Any]] | None = None) -> TokenTable:
        """Build the tables. 500,000 entries take less than a second and 23 MB.

        Args:
            entries: The metadata.
            ids: Id of each entry, from 0 to 2^31 - 1. The default is its index.

        Raises:
            UserError: If there are no entries, an entry occurs twice, or two entries share a key.
        """
        if not len(entries):
            raise UserError("the metadata has no entries to match against")
        numbers = np.arange(len(entries)) if ids is None else np.asarray(ids)
        tables, clash = tables_of(*text_buffers(pa.array(entries, pa.large_string())), numbers.astype(np.int32))
        if clash:
            first = entries[clash[0]]
            second = entries[clash[1]]
            if first == second:
                raise UserError(f"metadata entry {first!r} occurs twice, at {clash[0]} and at {clash[1]}")
            raise UserError(f"metadata entries {first!r} and {second!r} share a key of 63 bits; remove one")
        return cls(tables)

    def save(self, folder: Path) -> None:
        """Write one `.npy` file for each table."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables._asdict().items():
            np.save(folder / f"{name}.npy", table)

    @classmethod
    def load(cls, folder: Path) -> TokenTable:
        """Memory-map saved tables, so that the processes of a machine share them."""
        mapped = (store_files.read_npy(folder / f"{name}.npy", mapped=True) for name in HashTables._fields)
        return cls(_frozen(*mapped))

    @property
    def nbytes(self) -> int:
        """Size of all tables."""
        return sum(table.nbytes for table in self.tables)

    def match(self, texts: pa.Array | pa.ChunkedArray, *, verify: bool = False) -> pa.ListArray:
        """Find the ids of the entries in each text, list<int32>, ascending and distinct.

        Args:
            texts: Strings, of which null matches nothing.
            verify: Compare the bytes of the entries that the keys match, so that no match is false.

        Raises:
            UserError: If there are more than 2^31 - 1 matches.
        """
        ids, ends = match_texts(*text_buffers(texts), self.tables, verify)
        if len(ids) > np.iinfo(np.int32).max:
            raise UserError(
                f"{len(texts)} texts have {len(ids)} matches, more than an Arrow list can hold; use smaller shards"
            )
        return pa.ListArray.from_arrays(ends.astype(np.int32), ids)


def tables_of(
    data: Bytes, offsets: NDArray[np.int64], ids: NDArray[np.int32]
) -> tuple[HashTables, tuple[int, int] | None]:
    """Build the hash tables of entries.

    Args:
        data: All entries, joined.
        offsets: Start of each entry in `data`.
        ids: Id of each entry.

    Returns:
        The tables, and two entries that clash, if there are any. They are equal, or share a key.
    """
    padded = np.concatenate([data, np.zeros(PAD, np.uint8)])
    keys, values, longer, *clash = _runs(padded, offsets, ids)
    slots, pilots = perfect_hash(keys, values, longer)
    tables = _frozen(slots, pilots, _bits(keys), data, offsets)
    return tables, (clash[0], clash[1]) if clash[0] >= 0 else None


def _frozen(*arrays: NDArray[Any]) -> HashTables:
    """Convert to read-only plain arrays.

    The compiler then has one type, whether they were built or memory-mapped.
    """
    plain = [np.asarray(array) for array in arrays]
    for array in plain:
        array.setflags(write=False)
    return HashTables._make(plain)


@compiled
def _runs(
    data: Bytes, offsets: NDArray[np.int64], ids: NDArray[np.int32]
) -> tuple[Words, Words, NDArray[np.bool_], Any, Any]:
    """Collect all runs that begin entries, and find a clash.

    Returns:
        Key, slot value and whether a longer run exists, for each run. Then two entries that are equal or whose
        different beginnings share a key, or -1, -1.
    """
    num_entries = len(offsets) - 1
    most = len(offsets) - 1
    for byte in data:
        most += byte == SPACE
    run_at = np.full(2 * most, -1, np.int32)  # open addressing: the run with a key, or -1
    keys = np.empty(most, U)
    values = np.full(most, NO_ENTRY, U)
    longer = np.zeros(most, np.bool_)
    owners = np.empty(most, np.int64)
    sizes = np.empty(most, np.int64)
    num_runs = 0
    for entry in range(num_entries):
        start = offsets[entry]
        stop = offsets[entry + 1]
        piece, run, key = start, -1, ZERO
        while piece <= stop:
            end = piece
            while end < stop and data[end] != SPACE:
                end += 1
            token = token_key(data, U(piece), U(end))
            if run >= 0:
                longer[run] = True
            key = token if run < 0 else longer_key(key, token)
            slot = np.int64(high_product(key, U(2 * most)))
            while run_at[slot] >= 0 and keys[run_at[slot]] != key:
                slot = (slot + 1) % (2 * most)
            if run_at[slot] < 0:
                run_at[slot] = num_runs
                keys[num_runs] = key
                owners[num_runs] = entry
                sizes[num_runs] = end - start
                num_runs += 1
            run = run_at[slot]
            if not _same(data, offsets[owners[run]], sizes[run], start, end - start):
                return keys[:0], values, longer, owners[run], entry
            piece = end + 1
        if values[run] != NO_ENTRY:
            return keys[:0], values, longer, np.int64(values[run] >> U(32)), entry
        values[run] = U(entry) << U(32) | U(ids[entry])
    return keys[:num_runs], values[:num_runs], longer[:num_runs], -1, -1


@compiled
def _same(data: Bytes, first: int, first_size: int, second: int, second_size: int) -> bool:
    same = first_size == second_size
    for byte in range(first_size if same else 0):
        same &= data[first + byte] == data[second + byte]
    return same


@compiled
def _bits(keys: Words) -> Words:
    """Set one bit for each key, in a power of two of at least BITS_PER_RUN times as many bits."""
    size = 64
    while size < BITS_PER_RUN * len(keys):
        size *= 2
    bits = np.zeros(size // 64, U)
    for key in keys:
        bit = (key >> ONE) & U(size - 1)
        bits[bit >> SIX] |= ONE << (bit & LOW_SIX)
    return bits
