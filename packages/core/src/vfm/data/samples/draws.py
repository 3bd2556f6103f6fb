"""Random numbers by identity: each text has a 64-bit key, and a draw is a hash of the key and a seed.

Such a draw depends only on the text's uid, language and index, but not on order, shards, workers, processes or
machines. Many texts are hashed at a time, eight bytes per step, about 20 million texts per second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.data.samples.arrays import one_array

Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]
MASK = 0xFFFFFFFFFFFFFFFF
BLOCK = 1 << 14  # texts hashed together, so that intermediate arrays stay in the processor's cache
# Odd multipliers, so that language and index change different bits than the uid.
_LANGUAGE = 0xD1342543DE82EF95
_PLACE = 0x2545F4914F6CDD1D
_CHOICE = MASK  # not a seed or epoch: separates the choice of a text for each image from the draw of its use


def text_keys(
    uids: pa.Array, languages: pa.Array, text_index: pa.Array, hash_uids: Callable[[pa.Array], Keys] | None = None
) -> Keys:
    """Compute the keys of many texts, (num_texts,), each equal to its `text_key`.

    Args:
        uids: Uids of the samples, strings.
        languages: Languages of the captions, strings.
        text_index: Index among the sample's captions in that language.
        hash_uids: A faster equal of `hash_strings`, such as a compiled one.
    """
    codes = one_array(languages).dictionary_encode()
    named = hash_strings(codes.dictionary) * np.uint64(_LANGUAGE)
    codes = codes.indices.to_numpy(zero_copy_only=False)
    places = one_array(text_index).to_numpy(zero_copy_only=False)
    keys = (hash_uids or hash_strings)(uids)
    for first in range(0, len(keys), BLOCK):
        part = slice(first, first + BLOCK)
        keys[part] = splitmix64(keys[part] ^ (named[codes[part]] + places[part].astype(np.uint64) * np.uint64(_PLACE)))
    return keys


def text_key(uid: str, language: str, text_index: int) -> int:
    """Compute the 64-bit key of a text. This is the reference for `text_keys`.

    Args:
        uid: uid of the sample.
        language: Language of the text.
        text_index: Index of the text in the language.
    """
    return _mixed(_hash_plain(uid) ^ ((_hash_plain(language) * _LANGUAGE + text_index * _PLACE) & MASK))


def hash_strings(strings: pa.Array) -> Keys:
    """Hash the UTF-8 bytes of each string, (num_strings,).

    The length is mixed first, then eight bytes at a time.
    """
    column = one_array(strings)
    hashes = np.empty(len(column), dtype=np.uint64)
    if not len(column):
        return hashes
    _, offset_buffer, text_buffer = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    size = int(offsets[-1] - offsets[0])
    data = np.zeros(size + 8, dtype=np.uint8)  # padded, so that the last string can be read in whole words
    if size:
        data[:size] = np.frombuffer(text_buffer, np.uint8)[offsets[0] : offsets[-1]]
    words: Keys = np.ndarray((size + 1,), "<u8", data, strides=(1,))  # the 8-byte word that begins at each byte
    starts = offsets[:-1] - offsets[0]
    lengths = np.diff(offsets)
    for first in range(0, len(hashes), BLOCK):
        part = slice(first, first + BLOCK)
        hashes[part] = _hash_block(words, starts[part], lengths[part])
    return hashes


def _hash_block(words: Keys, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Keys:
    state = splitmix64(lengths.astype(np.uint64))
    longest = int(lengths.max())
    # Uids usually have the same length. Then their words are equidistant, and a strided view replaces the gather.
    even = longest == lengths.min()
    for offset in range(0, longest, 8):
        left = lengths - offset
        if even and longest - offset >= 8:  # whole words at a fixed stride
            state = splitmix64(state ^ words[starts[0] + offset :: longest][: len(starts)])
            continue
        # Strings that have bytes here. The mask clears bytes of the next string in the last word.
        some = left > 0
        unused = ((8 - np.minimum(left[some], 8)) * 8).astype(np.uint64)
        state[some] = splitmix64(state[some] ^ (words[starts[some] + offset] & (np.uint64(MASK) >> unused)))
    return state


def _hash_plain(string: str) -> int:
    data = string.encode()
    state = _mixed(len(data))
    for offset in range(0, len(data), 8):
        state = _mixed(state ^ int.from_bytes(data[offset : offset + 8], "little"))
    return state


def splitmix64(state: Keys) -> Keys:
    """Compute the generator's output at each state, by mixing its 64 bits.

    Source: Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators.
    """
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def _mixed(state: int) -> int:
    """Compute `splitmix64` of a state in plain Python, as its reference."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def uniform(keys: Keys, *seed: int) -> Floats:
    """Draw a number in [0, 1) for each key, (num_keys,), by splitmix64 of the key and the numbers of the seed."""
    start = 0
    for number in seed:
        start = _mixed(start ^ (number & MASK))
    numbers = np.empty(len(keys))
    for first in range(0, len(keys), BLOCK):
        part = slice(first, first + BLOCK)
        numbers[part] = (splitmix64(keys[part] ^ np.uint64(start)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def drawn(keys: Keys, probability: NDArray[Any], *seed: int, images: NDArray[Any] | None = None) -> NDArray[np.bool_]:
    """Draw a mask of the texts to use, (num_texts,). Probability 1 means always, 0 never.

    Args:
        keys: Keys of the texts, (num_texts,).
        probability: Probability of each text, (num_texts,).
        seed: One or more numbers that identify the draw, such as (seed, epoch).
        images: Image of each text, (num_texts,), with the texts of an image adjacent. First one text per image is
            chosen uniformly, and then it is used by its own probability (MetaCLIP 2). None: every text is drawn
            independently.
    """
    used: NDArray[np.bool_] = uniform(keys, *seed) < probability
    if images is not None and len(keys):
        # Every text draws a lot, and the text with the smallest lot of its image is chosen.
        firsts = np.flatnonzero(np.diff(images, prepend=images[0] - 1))
        lots = uniform(keys, *seed, _CHOICE)
        used &= lots == np.repeat(np.minimum.reduceat(lots, firsts), np.diff(firsts, append=len(keys)))
    return used
