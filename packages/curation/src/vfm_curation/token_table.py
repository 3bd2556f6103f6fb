"""The tables that texts of spaced languages are matched with: built from entries, kept in a folder, mapped to memory.

An entry of k pieces (cut at single spaces, empty ones kept) stands in a text exactly where its pieces are k consecutive
tokens of it, so runs of tokens are looked up by a key of 63 bits. That no two runs with which entries begin share a
key is checked when the tables are built. A run of a text that is in no entry may still share the key of one: for each
look-up with a chance of num_runs / 2^63, which is 0.01 false matches in 10^10 captions against 500,000 entries.
`verify` compares bytes and leaves none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.config import UserError
from vfm_curation.perfect_hash import perfect_hash
from vfm_curation.simd import compiled, high_product
from vfm_curation.token_hash import (
    LOW_SIX,
    NO_ENTRY,
    ONE,
    PAD,
    SIX,
    SPACE,
    ZERO,
    Bytes,
    Tables,
    Words,
    longer_key,
    match_texts,
    token_key,
)  # fmt: skip

U = np.uint64
BITS_PER_RUN = 4


class TokenTable:
    """Finds all entries in texts whose words stand between spaces; the fast twin of `vfm_curation.Matcher`."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    @classmethod
    def build(cls, entries: Sequence[str], ids: Sequence[int] | NDArray[np.integer[Any]] | None = None) -> TokenTable:
        """Makes the tables; 500,000 entries take below a second and 23 MB.

        Args:
            entries: the metadata.
            ids: of each entry, from 0 to 2^31 - 1; default: its place.

        Raises:
            UserError: there are no entries, one stands twice, or two share a key.
        """
        if not len(entries):
            raise UserError("the metadata holds no entries: there is nothing to match against")
        numbers = np.arange(len(entries)) if ids is None else np.asarray(ids)
        tables, clash = tables_of(*text_buffers(pa.array(entries, pa.large_string())), numbers.astype(np.int32))
        if clash:
            first, second = (entries[place] for place in clash)
            if first == second:
                raise UserError(f"metadata entry {first!r} stands twice, at {clash[0]} and at {clash[1]}")
            raise UserError(f"metadata entries {first!r} and {second!r} share a key of 63 bits: leave one out")
        return cls(tables)

    def save(self, folder: Path) -> None:
        """Writes one `.npy` file a table."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables._asdict().items():
            np.save(folder / f"{name}.npy", table)

    @classmethod
    def load(cls, folder: Path) -> TokenTable:
        """Maps saved tables into memory: processes of a machine share them."""
        mapped = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in Tables._fields)
        return cls(_frozen(*mapped))

    @property
    def nbytes(self) -> int:
        """Size of all tables."""
        return sum(table.nbytes for table in self.tables)

    def match(self, texts: pa.Array | pa.ChunkedArray, *, verify: bool = False) -> pa.ListArray:
        """Ids of the entries in each text, list<int32>, ascending, each once however often it occurs.

        Args:
            texts: strings; a missing one holds nothing.
            verify: compare the bytes of what the keys found, so that no match is false.
        """
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        ids, ends = match_texts(*text_buffers(texts), self.tables, verify)
        if len(ids) > np.iinfo(np.int32).max:
            raise UserError(
                f"{len(texts)} texts hold {len(ids)} matches, more than one list of Arrow can; cut the shard"
            )
        return pa.ListArray.from_arrays(ends.astype(np.int32), ids)


def text_buffers(texts: pa.Array) -> tuple[Bytes, NDArray[np.int64]]:
    """The bytes of an array of strings, in place, and the offset of each, (num_texts + 1,)."""
    if texts.null_count:
        texts = texts.fill_null("")
    _, offsets, data = texts.buffers()
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    found = np.frombuffer(offsets, kind)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(data if data else b"", np.uint8), found


def tables_of(data: Bytes, offsets: NDArray[np.int64], ids: NDArray[np.int32]) -> tuple[Tables, tuple[int, int] | None]:
    """The tables of entries, and the places of two that clash: the same ones, or such as share a key."""
    padded = np.concatenate([data, np.zeros(PAD, np.uint8)])
    keys, values, longer, *clash = _runs(padded, offsets, ids)
    slots, pilots = perfect_hash(keys, values, longer)
    tables = _frozen(slots, pilots, _bits(keys), data, offsets)
    return tables, (clash[0], clash[1]) if clash[0] >= 0 else None


def _frozen(*arrays: NDArray[Any]) -> Tables:
    """Plain arrays that cannot be written: one type for the compiler, whether built or mapped."""
    plain = [np.asarray(array) for array in arrays]
    for array in plain:
        array.setflags(write=False)
    return Tables._make(plain)


@compiled
def _runs(
    data: Bytes, offsets: NDArray[np.int64], ids: NDArray[np.int32]
) -> tuple[Words, Words, NDArray[np.bool_], Any, Any]:
    """All runs with which entries begin: key, value of its slot, whether a longer one goes on; and a clash, or -1, -1.

    A clash is two entries that are the same, or whose beginnings share a key and are not the same.
    """
    num_entries, most = len(offsets) - 1, len(offsets) - 1
    for byte in data:
        most += byte == SPACE
    places = np.full(2 * most, -1, np.int32)  # open addressing: the run with a key, or -1
    keys, values, longer = np.empty(most, U), np.full(most, NO_ENTRY, U), np.zeros(most, np.bool_)
    owners, sizes = np.empty(most, np.int64), np.empty(most, np.int64)
    num_runs = 0
    for entry in range(num_entries):
        start, stop = offsets[entry], offsets[entry + 1]
        piece, run, key = start, -1, ZERO
        while piece <= stop:
            end = piece
            while end < stop and data[end] != SPACE:
                end += 1
            token = token_key(data, U(piece), U(end))
            if run >= 0:
                longer[run] = True
            key = token if run < 0 else longer_key(key, token)
            place = np.int64(high_product(key, U(2 * most)))
            while places[place] >= 0 and keys[places[place]] != key:
                place = (place + 1) % (2 * most)
            if places[place] < 0:
                places[place] = num_runs
                keys[num_runs], owners[num_runs], sizes[num_runs] = key, entry, end - start
                num_runs += 1
            run = places[place]
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
    """One bit for each key among at least BITS_PER_RUN times as many, a power of two."""
    size = 64
    while size < BITS_PER_RUN * len(keys):
        size *= 2
    bits = np.zeros(size // 64, U)
    for key in keys:
        bit = (key >> ONE) & U(size - 1)
        bits[bit >> SIX] |= ONE << (bit & LOW_SIX)
    return bits
