"""Uids as 16 bytes, and lists of them as DataComp's tools write and read them: a sorted npy of two 64-bit halves each.

Source: DataComp's subset files and resharder, github.com/mlfoundations/datacomp.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data import packed_uids, uid_of
from vfm.plugin import UserError, store_files
from vfm_curation.simd import compiled

UID_DTYPE = np.dtype("u8,u8")
UID_BYTES = 16
NO_DIGIT = 255
DIGITS = np.full(256, NO_DIGIT, np.uint8)  # the value of each lower-case hexadecimal digit
DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

Halves = NDArray[np.void]


def uid_halves(uids: pa.ChunkedArray) -> Halves:
    """Convert uids to (high, low) halves, (num_uids,). 32 hexadecimal digits are used as they are, others hashed."""
    packed = bytes_of_uids(uids)
    if not pa.types.is_fixed_size_binary(packed.type):
        hexadecimal = pc.match_substring_regex(uids, r"^[0-9a-fA-F]{32}$").to_pylist()
        values = []
        for uid, is_hexadecimal in zip(uids.to_pylist(), hexadecimal, strict=True):
            values.append(bytes.fromhex(uid if is_hexadecimal else uid_of(uid)))
        packed = pa.array(values, pa.binary(16))
    halves = np.empty(len(packed), dtype=UID_DTYPE)
    halves["f0"], halves["f1"] = np.frombuffer(packed.buffers()[1], dtype=">u8", count=2 * len(packed)).reshape(-1, 2).T
    return halves


def bytes_of_uids(uids: pa.ChunkedArray) -> pa.Array:
    """Pack uids as `vfm.data.packed_uids` does, several times as fast: 16 bytes each if all are hexadecimal digits."""
    column = uids.combine_chunks() if isinstance(uids, pa.ChunkedArray) else uids
    if column.type != pa.string() or column.null_count or not len(column):
        return packed_uids(column)
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    if (np.diff(ends) != 2 * UID_BYTES).any():
        return column
    packed, all_digits = _packed(np.frombuffer(data, np.uint8)[ends[0] : ends[-1]], DIGITS)
    if not all_digits:
        return column
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(UID_BYTES), len(column), [None, pa.py_buffer(packed)])


@compiled
def _packed(text: NDArray[np.uint8], digits: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
    """Combine two digits to a byte each, and check that there is nothing but digits."""
    packed = np.empty(len(text) // 2, np.uint8)
    seen = np.uint8(0)
    for byte in range(len(packed)):
        high = digits[text[2 * byte]]
        low = digits[text[2 * byte + 1]]
        seen |= high | low  # a value that is no digit sets the bits above the lowest four
        packed[byte] = high << np.uint8(4) | low
    return packed, bool(seen < 16)


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
