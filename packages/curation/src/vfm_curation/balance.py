"""Balancing: how likely each text is kept, which texts that keeps, and the `t` that gives a wanted size.

All of it is pure: arrays in, arrays out. Whether a text is kept is a function of its own identity and the seed
alone, so neither the order of texts nor shards, workers or machines change the curated set.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.4 and Algorithm 1; the closed form and the
tail share: Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062). The released code draws without a seed; we hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from vfm.config import UserError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Keys = NDArray[np.uint64]


def keep_probability(counts: Integers, t: float) -> Floats:
    """Chance that a text is kept, for each metadata entry it matches.

    Entries matched at most `t` times keep all their texts; commoner ones keep `t` on average by their own draw.

    Args:
        counts: texts matched by each entry, (num_entries,).
        t: texts per entry above which an entry is "head"; 20_000 for 400M pairs, 170_000 for 2.5B.

    Returns:
        min(1, t / count), (num_entries,), each in (0, 1]; 1 for an entry that nothing matched.

    Raises:
        UserError: `t` is not positive.

    Source: Xu et al. 2023, Algorithm 1.
    """
    if not t > 0:
        raise UserError(f"t must be positive, not {t}")
    return t / np.maximum(counts.astype(np.float64), t)


def text_probability(ids: NDArray[np.integer], offsets: Integers, entry_probability: Floats) -> Floats:
    """Chance that a text is kept when each of its entries draws for itself and any success keeps it.

    Args:
        ids: entry ids of all texts, one text after the other, (num_ids,).
        offsets: text i has `ids[offsets[i]:offsets[i + 1]]`, (num_texts + 1,).
        entry_probability: (num_entries,).

    Returns:
        1 - prod(1 - p), (num_texts,), each in [0, 1]; 0 for a text without entries.
    """
    starts, ends = offsets[:-1], offsets[1:]
    matched = starts < ends
    missed = np.ones(len(starts))
    if matched.any():
        # reduceat gives an empty segment the value of its neighbour: only segments with ids may be passed.
        missed[matched] = np.multiply.reduceat(1.0 - entry_probability[ids[: offsets[-1]]], starts[matched])
    return 1.0 - missed


def text_key(uid: str, language: str, text_index: int) -> int:
    """A text's identity as 64 bits: blake2b of its sample's uid, language and place among the sample's captions."""
    name = f"{uid}\0{language}\0{text_index}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def uniform(keys: Keys, seed: int) -> Floats:
    """A number in [0, 1) for each key, by splitmix64 of key and seed: the same wherever and in whatever order."""
    with np.errstate(over="ignore"):
        start = splitmix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
        mixed = splitmix64(keys.astype(np.uint64) ^ start)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def splitmix64(state: Keys) -> Keys:
    """One output of the generator at each state: a mixing of 64 bits that leaves no pattern.

    Source: Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators.
    """
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def kept(probability: Floats, keys: Keys, seed: int) -> NDArray[np.bool_]:
    """Which texts are kept. A probability of 1 always keeps, one of 0 never does."""
    return uniform(keys, seed) < probability


def count_ids(batches: Iterable[NDArray[np.integer]], num_entries: int) -> Integers:
    """Texts matched by each entry, (num_entries,), from the ids of many texts; a text names an entry at most once."""
    counts = np.zeros(num_entries, dtype=np.int64)
    for ids in batches:
        counts += np.bincount(ids, minlength=num_entries)
    return counts


def t_for_target_size(expected_size: Callable[[float], float], target_size: int, max_count: int) -> float:
    """The smallest `t`, to within half a text, whose expected number of kept texts is `target_size`.

    The expected size, the sum of `text_probability`, is known before any draw and grows with `t`, so bisection finds
    it exactly. (The sum of min(count, t) over entries is not the size: texts match several entries.)

    Args:
        expected_size: expected number of kept texts at a given `t`.
        target_size: wanted number of texts.
        max_count: the count of the commonest entry; from there on every matched text is kept.

    Raises:
        UserError: the pool has fewer matched texts than that.
    """
    available = expected_size(float(max_count))
    if not 0 < target_size <= available:
        raise UserError(f"target_size {target_size} is not possible: {available:.0f} texts matched; choose 1 to that")
    low, high = 0.0, float(max_count)
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        size = expected_size(middle)
        if abs(size - target_size) < 0.5 and target_size < available:
            return middle
        low, high = (middle, high) if size < target_size else (low, middle)
    return high


def tail_share(counts: Integers, t: float) -> float:
    """Share of all matches that fall on entries matched fewer than `t` times; about 6 % in the paper's sets."""
    return float(counts[counts < t].sum() / max(1, counts.sum()))


def t_for_tail_share(counts: Integers, share: float) -> float:
    """The `t` below which about `share` of all matches lie: the count where the ascending cumulative share is nearest.

    Only entries that something matched take part, so `t` is at least 1 and a set with one dominant entry is kept whole.
    (Over all entries, as released with MetaCLIP 2, `t` is 0 there, and every text of such a language is lost.)
    Entries at `t` itself are included here and excluded in `tail_share`: one is the other's inverse up to one step.

    Raises:
        UserError: nothing matched.
    """
    matched = np.sort(counts[counts > 0])
    if not len(matched):
        raise UserError("no entry has a match: there is no t to choose")
    cumulative = np.cumsum(matched) / matched.sum()
    return float(matched[np.abs(cumulative - share).argmin()])


def cumulative_share(counts: Integers) -> Floats:
    """Share of all matches that the k commonest entries hold, for k = 1 to num_entries; the head/tail curve."""
    share: Floats = np.cumsum(np.sort(counts)[::-1]) / max(1, counts.sum())
    return share
