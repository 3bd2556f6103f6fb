"""Compiled kernel of matching: find the entries that each text contains by hashes of its runs of tokens.

A text is split like `vfm_curation.matching.tokenize` does, 64 bytes at a time, and every token is hashed once. The key
of a run of tokens is computed from the key of the run without its last token and that token's hash. Single tokens are
looked up first, then longer runs, but only if the shorter run begins a longer entry. Keys have 63 bits, and the lowest
bit of their word is a flag.

Blocks of texts go through passes without data-dependent branches: a value is always written, and the position of the
next write advances by 0 or 1. Slots are prefetched one whole pass before they are read, so that many cache misses are
in flight at once.

Sources: Wang Yi, wyhash, for the folded product as a hash, and Pibiri and Trani 2021, PTHash (arXiv:2104.10402), for
pilots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm_curation.match.text_ids import append_sorted, group
from vfm_curation.simd import byte_masks, compiled, folded_product, high_product, load8, lowest_bit, prefetch

Bytes = NDArray[np.uint8]
Integers = NDArray[np.signedinteger[Any]]
Words = NDArray[np.uint64]

PAD = 64  # bytes that wide loads may read beyond a text
BLOCK_BYTES = 16_384  # texts that go through the passes together: they and their runs fit into the L2 cache
BLOCK_TEXTS = 256  # texts of a pass, if they are short

U = np.uint64
ZERO, ONE, SIX, EIGHT, SIXTEEN, LOW_SIX, WORD = U(0), U(1), U(6), U(8), U(16), U(63), U(64)
KEY = ~ONE
NO_ENTRY = ~ZERO
SPACE = 32
P, Q, R, S = U(0x9E3779B97F4A7C15), U(0xD6E8FEB86659FD93), U(0xA0761D6478BD642F), U(0xE7037ED1A0B428DB)
FIRST = np.array([256 ** min(n, 8) - 1 for n in range(17)], U)  # the bytes of a token of n bytes in its first word
SECOND = np.array([256 ** max(n - 8, 0) - 1 for n in range(17)], U)

separators = byte_masks(b" \t\n\r", b",.;:?!`")  # blanks and marks, as in vfm_curation.matching


class HashTables(NamedTuple):
    """Tables that matching reads, built by `vfm_curation.match.token_table`."""

    slots: Words
    """Two words for each slot: key | (1 if a longer entry begins with this run); entry << 32 | id, or NO_ENTRY."""
    pilots: NDArray[np.uint16]
    """A perfect hash: a key's pilot maps it to its own slot, so a look-up reads one cache line, hit or miss."""
    bits: Words
    """One bit for each key: most runs that begin no entry are rejected here, in the L2 cache."""
    entry_data: Bytes
    entry_offsets: NDArray[np.int64]


@compiled
def token_key(data: Bytes, start: U, stop: U) -> U:
    """Compute the key of the token from start to stop. This reads up to 16 bytes beyond."""
    size = stop - start
    state = size * R
    while size > SIXTEEN:
        state = folded_product(load8(data, start) ^ state, load8(data, start + EIGHT) ^ Q)
        start += SIXTEEN
        size -= SIXTEEN
    first, second = load8(data, start) & FIRST[size], load8(data, start + EIGHT) & SECOND[size]
    return folded_product(first ^ P ^ state, second ^ Q ^ state) & KEY


@compiled
def longer_key(key: U, token: U) -> U:
    """Compute the key of a run with one more token."""
    return folded_product(key ^ S, token ^ R) & KEY


@compiled
def slot_of(key: U, pilots: NDArray[np.uint16], num_slots: U) -> U:
    """Find the slot where a key would be."""
    return pilot_slot(key, pilots[pilot_of(key, len(pilots))], num_slots)


@compiled
def pilot_of(key: U, num_pilots: int) -> U:
    """Find the index of a key's pilot."""
    return high_product(key, U(num_pilots))


@compiled
def pilot_slot(key: U, pilot: int, num_slots: U) -> U:
    """Find the slot to which a pilot maps a key."""
    return high_product((key ^ U(pilot)) * P, num_slots)


@compiled
def match_texts(
    data: Bytes, offsets: Integers, tables: HashTables, verify: bool
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Find the ids in all texts, ascending and distinct within a text, with the offsets of each text's.

    Args:
        data: Bytes of all texts, UTF-8.
        offsets: Text i is data[offsets[i]:offsets[i + 1]], (num_texts + 1,).
        tables: Tables of the entries.
        verify: Compare the bytes of the entries that the keys match.
    """
    num_texts, longest = len(offsets) - 1, 0
    for text in range(num_texts):
        longest = max(longest, offsets[text + 1] - offsets[text])
    room = max(longest, BLOCK_BYTES)
    block, num_tokens = np.zeros(room + PAD, np.uint8), 2 * room + BLOCK_TEXTS + 1
    tokens, owners = np.empty(num_tokens, U), np.empty(num_tokens, U)
    spans = np.empty((num_tokens if verify else 0, 2), U)
    # A run is its key; its head is the index of its first token.
    runs, heads, slots = np.empty(num_tokens, U), np.empty(num_tokens, U), np.empty(num_tokens, U)
    hits, hit_heads = np.empty(num_tokens, U), np.empty(num_tokens, U)
    grouped, cursor = np.empty(0, np.int32), np.empty(BLOCK_TEXTS + 2, U)
    ids, ends, num_ids = np.empty(1024, np.int32), np.zeros(num_texts + 1, np.int64), ZERO
    first = 0
    while first < num_texts:
        last = first + 1
        while last < num_texts and last - first < BLOCK_TEXTS and offsets[last + 1] - offsets[first] <= BLOCK_BYTES:
            last += 1
        for byte in range(offsets[last] - offsets[first]):
            block[byte] = data[offsets[first] + byte]
        num_runs, num_hits, length = _tokenize(block, offsets[first : last + 1], tokens, owners, spans), ZERO, ONE
        for run in range(num_runs):
            runs[run], heads[run] = tokens[run], run
        while num_runs > ZERO:
            hits, hit_heads = _with_room(hits, num_hits + num_runs), _with_room(hit_heads, num_hits + num_runs)
            old = num_hits
            num_hits, num_runs = _look_up(runs, heads, num_runs, tables, slots, hits, hit_heads, num_hits)
            if verify:
                num_hits = _verified(hits, hit_heads, old, num_hits, length, block, spans, tables)
            num_runs = _lengthen(runs, heads, num_runs, length, tokens, tables.bits)
            length += ONE
        grouped = _with_room(grouped, num_hits + SIXTEEN)
        group(hits, hit_heads, num_hits, owners, grouped, cursor, last - first)
        ids, start = _with_room(ids, num_ids + num_hits), ZERO
        for text in range(last - first):
            num_ids = append_sorted(grouped, start, cursor[text], ids, num_ids)
            start, ends[first + text + 1] = cursor[text], num_ids
        first = last
    return ids[: np.int64(num_ids)].copy(), ends


@compiled
def _with_room(array: Any, size: U) -> Any:
    """Return the array, or a larger copy with room for `size` numbers."""
    if size <= U(len(array)):
        return array
    bigger = np.empty(2 * np.int64(size), array.dtype)
    for index in range(len(array)):  # a loop, since slices take seconds to compile
        bigger[index] = array[index]
    return bigger


@compiled
def _tokenize(block: Bytes, offsets: Integers, tokens: Words, owners: Words, spans: Words) -> U:
    """Write the key, the text and, if `spans` has room, the span of each token.

    A flag in the key says whether another token follows in its text.
    """
    num_tokens, with_spans = ZERO, len(spans) > 0
    for text in range(len(offsets) - 1):
        start, stop = U(offsets[text] - offsets[0]), U(offsets[text + 1] - offsets[0])
        base = start
        while base < stop:
            # One word of bits marks the separators among the next bytes.
            blanks, marks = separators(block, base)
            cuts = blanks | marks
            # The block may contain the next text. Its bits are cleared.
            if stop - base < WORD:
                cuts &= (ONE << (stop - base)) - ONE
            while cuts:
                bit = lowest_bit(cuts)
                cut, is_mark = base + bit, (marks >> bit) & ONE
                tokens[num_tokens], owners[num_tokens] = token_key(block, start, cut) | ONE, U(text)
                if with_spans:
                    spans[num_tokens, 0], spans[num_tokens, 1] = start, cut
                num_tokens += ONE
                tokens[num_tokens], owners[num_tokens] = token_key(block, cut, cut + ONE) | ONE, U(text)
                if with_spans:
                    spans[num_tokens, 0], spans[num_tokens, 1] = cut, cut + ONE
                # A mark is a token, a blank is not: it is written, and overwritten by the next token.
                num_tokens += is_mark
                start = cut + ONE
                cuts &= cuts - ONE
            base += WORD
        tokens[num_tokens], owners[num_tokens] = token_key(block, start, stop), U(text)
        if with_spans:
            spans[num_tokens, 0], spans[num_tokens, 1] = start, stop
        num_tokens += ONE
    return num_tokens


@compiled
def _look_up(
    runs: Words,
    heads: Words,
    num_runs: U,
    tables: HashTables,
    places: Words,
    hits: Words,
    hit_heads: Words,
    num_hits: U,
) -> tuple[U, U]:
    """Add the entries that are runs to `hits`, and keep the runs that may begin a longer entry."""
    slots, num_slots, num_kept = tables.slots, U(len(tables.slots) // 2), ZERO
    for run in range(num_runs):
        slot = slot_of(runs[run] & KEY, tables.pilots, num_slots) * U(2)
        places[run] = slot
        prefetch(slots, slot)
    for run in range(num_runs):
        key, head, slot = runs[run], heads[run], places[run]
        stored, value = slots[slot], slots[slot + ONE]
        hit = U((stored ^ key) <= ONE)  # equal but for the flag
        hits[num_hits], hit_heads[num_hits] = value, head
        num_hits += hit & U(value != NO_ENTRY)
        runs[num_kept], heads[num_kept] = key, head
        num_kept += hit & stored & key  # the flags: a longer entry exists, and the text has another token
    return num_hits, num_kept


@compiled
def _lengthen(runs: Words, heads: Words, num_runs: U, length: U, tokens: Words, bits: Words) -> U:
    """Append the next token to each run, and keep the runs that may be in the tables."""
    mask, num_kept = U(len(bits)) * WORD - ONE, ZERO
    for run in range(num_runs):
        head = heads[run]
        token = tokens[head + length]
        key = longer_key(runs[run] & KEY, token & KEY)
        runs[num_kept], heads[num_kept] = key | (token & ONE), head
        bit = (key >> ONE) & mask
        num_kept += (bits[bit >> SIX] >> (bit & LOW_SIX)) & ONE
    return num_kept


@compiled
def _verified(
    hits: Words, hit_heads: Words, old: U, num_hits: U, length: U, block: Bytes, spans: Words, tables: HashTables
) -> U:
    """Keep only entries from `old` on whose bytes are the tokens with one space between them."""
    num_kept = old
    for hit in range(old, num_hits):
        entry = hits[hit] >> U(32)
        at, stop, same = tables.entry_offsets[entry], tables.entry_offsets[entry + ONE], True
        for token in range(hit_heads[hit], hit_heads[hit] + length):
            for byte in range(spans[token, 0], spans[token, 1]):
                same &= at < stop and tables.entry_data[at] == block[byte]
                at += 1
            same &= at == stop or (at < stop and tables.entry_data[at] == SPACE)
            at += 1
        hits[num_kept], hit_heads[num_kept] = hits[hit], hit_heads[hit]
        num_kept += U(same and at == stop + 1)
    return num_kept
