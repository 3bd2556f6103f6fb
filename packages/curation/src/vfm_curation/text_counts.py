"""Bytes of texts in Arrow's buffers, and counts of characters and words as `len(text)` and `len(text.split())` give."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.data import one_array
from vfm_curation.simd import byte_masks, compiled, load8, num_bits

Counts = NDArray[np.int32]
U = np.uint64
ZERO, ONE = U(0), U(1)
HIGH_BITS = U(0x8080808080808080)  # set in bytes beyond ASCII

ascii_spaces = byte_masks(b" \t\n\v\f\r\x1c\x1d\x1e\x1f")


def character_and_word_counts(texts: pa.ChunkedArray) -> tuple[Counts, Counts]:
    """Count the characters of each text, and its words between white space, two arrays of (num_texts,)."""
    characters, words = _counts(*text_buffers(texts))
    return characters, words


def text_buffers(texts: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Get the bytes of strings and the offset of each string, (num_texts + 1,). Null counts as empty.

    The bytes are not copied, unless the strings are in several chunks or in a dictionary, or some are null.
    """
    column = one_array(texts)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        column = column.fill_null("")
    if not len(column):
        return np.frombuffer(b"", np.uint8), np.zeros(1, np.int64)  # read-only, as the bytes of a buffer are
    _, offsets, data = column.buffers()
    kind = np.int64 if pa.types.is_large_string(column.type) else np.int32
    text_offsets = np.frombuffer(offsets, kind)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return np.frombuffer(data or b"", np.uint8), text_offsets


@compiled
def _counts(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> tuple[Counts, Counts]:
    characters = np.empty(len(ends) - 1, np.int32)
    words = np.empty(len(ends) - 1, np.int32)
    for text in range(len(characters)):
        num_words = _ascii_words(data, ends[text], ends[text + 1])
        if num_words >= 0:
            characters[text] = ends[text + 1] - ends[text]
            words[text] = num_words
        else:
            characters[text], words[text] = _characters_and_words(data, ends[text], ends[text + 1])
    return characters, words


@compiled
def _ascii_words(data: NDArray[np.uint8], start: int, end: int) -> np.int64:
    """Count the words of a text of ASCII, 64 bytes at a time. Return -1 for another text, or at the data's end."""
    num_words = ZERO
    before = ZERO  # 1 if the last byte belongs to a word
    for at in range(start, end, 64):
        if at + 64 > len(data):
            return np.int64(-1)
        (spaces,) = ascii_spaces(data, U(at))
        here = ~ZERO if end - at >= 64 else (ONE << U(end - at)) - ONE
        beyond = ZERO
        for place in range(at, min(end, at + 64), 8):
            word = load8(data, U(place))
            beyond |= word if end - place >= 8 else word & ((ONE << U(8 * (end - place))) - ONE)
        if beyond & HIGH_BITS:
            return np.int64(-1)
        in_words = ~spaces & here
        num_words += num_bits(in_words & ~(in_words << ONE | before))
        before = in_words >> U(63)
    return np.int64(num_words)


@compiled
def _characters_and_words(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    num_characters = 0
    num_words = 0
    in_word = False
    while at < end:
        byte = data[at]
        size = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        if size == 1:
            space = byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31
        else:
            space = size < 4 and _is_wide_space(data, at, size)
        num_characters += 1
        num_words += not space and not in_word
        in_word = not space
        at += size
    return num_characters, num_words


@compiled
def _is_wide_space(data: NDArray[np.uint8], at: int, size: int) -> bool:
    """Check whether a character of two or three bytes is white space for Python."""
    if size == 2:
        return bool(data[at] == 0xC2 and (data[at + 1] == 0x85 or data[at + 1] == 0xA0))
    code = (data[at] & 0x0F) << 12 | (data[at + 1] & 0x3F) << 6 | (data[at + 2] & 0x3F)
    if code < 0x2000 or code > 0x205F:
        return bool(code == 0x1680 or code == 0x3000)
    return bool(code <= 0x200A or code == 0x2028 or code == 0x2029 or code == 0x202F or code == 0x205F)
