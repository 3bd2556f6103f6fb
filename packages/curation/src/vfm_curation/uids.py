"""Uids as 16 bytes, and lists of them as DataComp's tools write and read them: a sorted npy of two 64-bit halves each.

Source: DataComp's subset files and resharder, github.com/mlfoundations/datacomp.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data import one_array, packed_uids, splitmix64, uid_of
from vfm.plugin import UserError, store_files
from vfm_curation.simd import compiled, load8
from vfm_curation.text_counts import text_buffers

UID_DTYPE = np.dtype("u8,u8")
UID_BYTES = 16
U = np.uint64
ONES = U(0x0101010101010101)  # 1 in each byte

Halves = NDArray[np.void]
Words = NDArray[np.uint64]

_mixed: Any = compiled(splitmix64)  # of a single number, while splitmix64 takes arrays


def uid_halves(uids: pa.ChunkedArray) -> Halves:
    """Convert uids to (high, low) halves, (num_uids,). 32 hexadecimal digits are used as they are, others hashed."""
    packed = bytes_of_uids(uids)
    if not pa.types.is_fixed_size_binary(packed.type):
        hexadecimal = pc.match_substring_regex(uids, r"^[0-9a-fA-F]{32}$").to_pylist()
        values = []
        for uid, is_hexadecimal in zip(uids.to_pylist(), hexadecimal, strict=True):
            values.append(bytes.fromhex(uid if is_hexadecimal else uid_of(uid)))
        packed = pa.array(values, pa.binary(16))
    start = 2 * packed.offset
    words = np.frombuffer(packed.buffers()[1], dtype=">u8")[start : start + 2 * len(packed)]
    halves: Halves = words.astype(np.uint64).view(UID_DTYPE)
    return halves


def bytes_of_uids(uids: pa.ChunkedArray) -> pa.Array:
    """Pack uids as `vfm.data.packed_uids` does, many times as fast: 16 bytes each if all are hexadecimal digits."""
    column = one_array(uids)
    if column.type != pa.string() or column.null_count or not len(column):
        return packed_uids(column)
    data, ends = text_buffers(column)
    if (np.diff(ends) != 2 * UID_BYTES).any():
        return column
    packed, all_digits = _packed(data, U(ends[0]), len(column))
    if not all_digits:
        return column
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(UID_BYTES), len(column), [None, pa.py_buffer(packed)])


@compiled
def _packed(text: NDArray[np.uint8], start: U, num_uids: int) -> tuple[NDArray[np.uint32], bool]:
    """Combine two digits to a byte each, eight digits at a time, and check that there is nothing but digits."""
    packed = np.empty(4 * num_uids, np.uint32)
    different = U(0)
    for place in range(len(packed)):
        word = load8(text, start + U(8 * place))
        letter = word >> U(6) & ONES  # a byte of 1 for each of a to f
        digit = (word & U(15) * ONES) + U(9) * letter
        # A value above 9 has the bit of 16 when 6 is added, and is then written as a letter. Above 15 it has the bit.
        different |= word ^ (digit + U(ord("0")) * ONES + U(39) * ((digit + U(6) * ONES) >> U(4) & ONES))
        different |= digit & U(16) * ONES
        pairs = (digit << U(4) | digit >> U(8)) & U(0x00FF00FF00FF00FF)
        pairs = (pairs | pairs >> U(8)) & U(0x0000FFFF0000FFFF)
        packed[place] = np.uint32(pairs | pairs >> U(16))
    return packed, different == U(0)


def hash_uids(uids: pa.Array) -> Words:
    """Hash uids as `vfm.data.hash_strings` does, four times as fast."""
    hashes: Words = _hashes(*text_buffers(uids))
    return hashes


@compiled
def _hashes(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> Words:
    hashes = np.empty(len(ends) - 1, U)
    for text in range(len(hashes)):
        at = U(ends[text])
        stop = U(ends[text + 1])
        state = _mixed(stop - at)
        while at + U(8) <= stop:
            state = _mixed(state ^ load8(data, at))
            at += U(8)
        if at < stop:
            word = U(0)
            for byte in range(at, stop):
                word |= U(data[byte]) << (U(8) * (U(byte) - at))
            state = _mixed(state ^ word)
        hashes[text] = state
    return hashes


@functools.lru_cache(maxsize=2)
def read_uids(path: str) -> Halves:
    """Read a list of uids in ascending order. A list that is sorted on disk is mapped into memory.

    Raises:
        UserError: If the file is missing, damaged or empty, or its numbers are not pairs of 64-bit halves.
    """
    listed = store_files.read_npy(path, mapped=True)
    if listed.ndim != 1 or [listed.dtype[n].str[1:] for n in range(len(listed.dtype))] != ["u8", "u8"]:
        raise UserError(f"{path}: expected uids as pairs of 64-bit halves (u8, u8), got {listed.dtype} {listed.shape}")
    if not len(listed):
        raise UserError(f"{path}: expected uids, got an empty list")
    high = listed[listed.dtype.names[0]]
    if listed.dtype == UID_DTYPE and bool((high[1:] >= high[:-1]).all()):
        uids: Halves = listed
        return uids
    return np.sort(listed.astype(UID_DTYPE))


def are_listed(uids: pa.ChunkedArray, listed: Halves) -> NDArray[np.bool_]:
    """Check whether each uid is in a list whose high halves ascend, (num_uids,)."""
    wanted = uid_halves(uids)
    high = listed["f0"]
    low = listed["f1"]
    in_list = np.zeros(len(wanted), np.bool_)
    position = np.searchsorted(high, wanted["f0"], side="left")
    end = np.searchsorted(high, wanted["f0"], side="right")
    # Uids with the same high half are adjacent: nearly always there is one or none.
    while (left := np.flatnonzero(position < end)).size:
        equal = low[position[left]] == wanted["f1"][left]
        in_list[left[equal]] = True
        position[left] = np.where(equal, end[left], position[left] + 1)
    return in_list
