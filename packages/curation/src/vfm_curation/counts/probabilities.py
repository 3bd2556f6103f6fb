"""Compute the probability of keeping each text, and the `t` that gives a target size or tail share.

Pure functions: arrays in, arrays out. The draw itself is `vfm.data.drawn`, from the text's identity and the seed.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.4 and Algorithm 1. The closed form and the
tail share are from Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.plugin import UserError
from vfm_curation.simd import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Ids = NDArray[np.integer]

__all__ = [
    "Floats", "Ids", "Integers", "add_to_entries", "count_ids", "cumulative_share", "in_units", "keep_probability",
    "nearest_t_for_tail_share", "t_for_tail_share", "t_for_target_size", "tail_share", "text_probability",
]  # fmt: skip


def keep_probability(counts: Integers, t: float | Floats) -> Floats:
    """Compute the probability that an entry keeps a text that it matches.

    Entries matched at most `t` times keep all their texts. More frequent ones keep `t` on average by their own draw.

    Args:
        counts: Texts matched by each entry, (num_entries,).
        t: Texts per entry above which an entry is "head", such as 20_000 for 400M pairs or 170_000 for 2.5B. Either
            one value for all entries, or one for each, (num_entries,), if languages have different values.

    Returns:
        min(1, t / count), (num_entries,), each in (0, 1]. It is 1 for an entry that nothing matched.

    Raises:
        UserError: If `t` is not positive.

    Source: Xu et al. 2023, Algorithm 1.
    """
    if not np.all(t > 0):
        raise UserError(f"t must be positive, got {np.min(t)}")
    probability: Floats = t / np.maximum(counts.astype(np.float64), t)
    return probability


def text_probability(ids: Ids, offsets: Integers, entry_probability: Floats) -> Floats:
    """Compute the probability that a text is kept, if each of its entries draws once and any success keeps it.

    Args:
        ids: Entry ids of all texts, one text after the other, (num_ids,).
        offsets: Text i has `ids[offsets[i]:offsets[i + 1]]`, (num_texts + 1,).
        entry_probability: (num_entries,), or (num_entries, K) for K choices at once.

    Returns:
        1 - prod(1 - p), (num_texts,) or (num_texts, K), each in [0, 1]. It is 0 for a text without entries.

    Raises:
        UserError: If an id or an offset is out of range.
    """
    _check_lists(ids, offsets, len(entry_probability))
    choices = np.ascontiguousarray(entry_probability.reshape(len(entry_probability), -1))
    return _chances(ids, offsets, choices).reshape(-1, *entry_probability.shape[1:])


@compiled
def in_units(chances: Floats) -> Integers:
    """Sum the probabilities of each choice, (num_texts, K), in units of 2^-32, (K,).

    The sum is exact to 2^-32 for each text and, unlike a sum of floats, the same in any order. `t` is solved from it,
    so the kept set would otherwise depend on how the pool is split into shards.
    """
    units = np.zeros(chances.shape[1], np.int64)
    for text in range(len(chances)):
        for choice in range(len(units)):
            # Integers, whose sum does not depend on the order in which shards are finished.
            units[choice] += np.int64(np.rint(chances[text, choice] * 2.0**32))
    return units


def add_to_entries(totals: NDArray[Any], ids: Ids, offsets: Integers, weights: NDArray[Any]) -> None:
    """Add each text's weights, (num_texts, K), to the totals of its entries, (num_entries, K), in place.

    Raises:
        UserError: If an id or an offset is out of range.
    """
    _check_lists(ids, offsets, len(totals))
    _scatter(totals, ids, offsets, weights)


def _check_lists(ids: Ids, offsets: Integers, num_entries: int) -> None:
    """Check the ranges of ids and offsets. Compiled loops read them without bounds checks."""
    if offsets.min() < 0 or offsets.max() > len(ids):
        raise UserError(f"offsets from {offsets.min()} to {offsets.max()} into {len(ids)} entry ids")
    if len(ids) and not 0 <= ids.min() <= ids.max() < num_entries:
        raise UserError(f"entry ids from {ids.min()} to {ids.max()}, of {num_entries} entries")


@compiled
def _chances(ids: Ids, offsets: Integers, entry_probability: Floats) -> Floats:
    chances = np.empty((len(offsets) - 1, entry_probability.shape[1]))
    for text in range(chances.shape[0]):
        for choice in range(chances.shape[1]):
            missed = 1.0
            for index in range(offsets[text], offsets[text + 1]):
                # A product over the few entries of a text is exact enough, where a sum of logarithms would need one for
                # each entry.
                missed *= 1.0 - entry_probability[ids[index], choice]
            chances[text, choice] = 1.0 - missed
    return chances


@compiled
def _scatter(totals: NDArray[Any], ids: Ids, offsets: Integers, weights: NDArray[Any]) -> None:
    for text in range(len(weights)):
        for index in range(offsets[text], offsets[text + 1]):
            for choice in range(totals.shape[1]):
                totals[ids[index], choice] += weights[text, choice]


def count_ids(batches: Iterable[Ids], num_entries: int) -> Integers:
    """Count the texts matched by each entry, (num_entries,). A text has each entry at most once among its ids."""
    counts = np.zeros(num_entries, dtype=np.int64)
    for ids in batches:
        counts += np.bincount(ids, minlength=num_entries)
    return counts


def t_for_target_size(expected_size: Callable[[float], float], target_size: int, counts: Integers) -> float:
    """Find a `t` whose expected number of kept texts is `target_size`, to within half a text.

    The expected size is the sum of `text_probability`. It is known before any draw and grows with `t`. A bracketed
    secant method (Illinois) finds `t` in about ten evaluations, each a pass over the matches. (The sum of min(count, t)
    over entries is not the size, since texts match several entries.)

    Args:
        expected_size: Expected number of kept texts at a given `t`. It may jump over the target when other languages
            follow `t` in steps. The `t` above the jump is returned then.
        target_size: Number of texts to keep.
        counts: Texts matched by each entry. Above the largest count every matched text is kept. (At the count itself
            the entry is outside the tail, and languages that follow that tail's share drop texts.)

    Raises:
        UserError: If fewer than `target_size` texts matched, or every `t` keeps more.
    """
    high = float(max(1, counts.max())) + 1.0
    # An entry keeps at most t texts on average, so this t cannot reach the target.
    low = min(1.0, target_size / max(1, int(np.count_nonzero(counts))))
    # The size grows with t, so the two ends bracket the solution.
    above, below = expected_size(high) - target_size, expected_size(low) - target_size
    if not target_size > 0 or above <= -0.5:
        most = above + target_size
        raise UserError(f"target_size {target_size} is not possible: {most:.0f} texts matched; choose 1 to that")
    if below >= 0.5:
        raise UserError(f"target_size {target_size} is not possible: no t keeps fewer than {below + target_size:.0f}")
    if above < 0.5 or below > -0.5:
        return high if above < 0.5 else low
    last = 0  # the side of the last evaluation: a bound that stays twice is halved (Illinois)
    for step in range(1, 200):
        if step % 4 == 0:
            share = 0.5  # a bisection now and then, in case the secant stalls
        else:
            share = below / (below - above)
        # In logarithms, as t spans several orders of magnitude.
        middle = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        gap = expected_size(middle) - target_size
        if abs(gap) < 0.5:
            return middle
        side = 1 if gap > 0 else -1
        if side > 0:
            high = middle
            above = gap
            below = below / 2 if last == side else below
        else:
            low = middle
            below = gap
            above = above / 2 if last == side else above
        last = side
        # The size jumps where a count equals t, so no t may be within half a text of the target.
        if high - low <= 1e-9 * high:
            break
    return high


def tail_share(counts: Integers, t: float | Floats) -> float:
    """Compute the fraction of matches in entries matched fewer than `t` times, about 6 % in the paper's sets.

    `t` is one value for all entries or one for each, (num_entries,).
    """
    return float(counts[counts < t].sum() / max(1, counts.sum()))


def t_for_tail_share(counts: Integers, share: float) -> float:
    """Find the `t` below which about `share` of all matches are, interpolated between the entries' counts.

    Between two counts far apart, such as 1 and 100000, the nearer one would lose almost all texts of a language.

    Only matched entries are counted, so `t` is at least 1 and a set with one dominant entry is kept whole. (Counting
    all entries, as in the code released with MetaCLIP 2, gives `t = 0` there and loses every text of the language.)
    Entries at `t` itself are included here and excluded in `tail_share`: one is the other's inverse up to one step.

    Raises:
        UserError: If no text matched.
    """
    values, repeats = np.unique(counts[counts > 0], return_counts=True)
    if not len(values):
        raise UserError("no entry has a match: there is no t to choose")
    cumulative = np.cumsum(values * repeats)
    return float(np.interp(share, cumulative / cumulative[-1], values))


def nearest_t_for_tail_share(counts: Integers, share: float) -> float:
    """Find the count of the entry up to which the share of all matches is nearest to `share`, at least 1.

    This is the rule of the code released with MetaCLIP 2 (`p_to_t`), which also gives 0, and then loses every text.

    Raises:
        UserError: If no text matched.
    """
    ascending = np.sort(counts)
    if not ascending.any():
        raise UserError("no entry has a match: there is no t to choose")
    cumulative = np.cumsum(ascending)
    nearest = np.abs(cumulative / cumulative[-1] - share).argmin()
    return max(1.0, float(ascending[nearest]))


def cumulative_share(counts: Integers | Floats) -> Floats:
    """Compute the fraction of matches in the k most frequent entries, k = 1 to num_entries: the head/tail curve."""
    share: Floats = np.cumsum(np.sort(counts)[::-1]) / max(1, counts.sum())
    return share
