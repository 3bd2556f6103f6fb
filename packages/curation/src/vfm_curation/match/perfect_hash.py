"""A perfect hash gives every key of a fixed set its own slot, so that a look-up reads one slot, hit or miss.

Keys are divided into small buckets. Each bucket has a pilot, a small number that, mixed into its keys, maps all of them
to free slots. The fullest buckets choose first, while most slots are free.

Source: Pibiri and Trani 2021, PTHash (arXiv:2104.10402).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm_curation.match.token_hash import NO_ENTRY, ONE, Words, pilot_of, pilot_slot
from vfm_curation.simd import compiled

U = np.uint64
RUNS_PER_PILOT = 4  # on average; with many more, no pilot would place all of them
LOAD = 0.8  # fraction of slots that hold a run
MAX_PILOT = 65_536  # a pilot is stored in 16 bits


def perfect_hash(keys: Words, values: Words, longer: NDArray[np.bool_]) -> tuple[Words, NDArray[np.uint16]]:
    """Choose slots for all runs, and the pilots that map to them."""
    num_slots = int(len(keys) / LOAD) + 1
    num_pilots = len(keys) // RUNS_PER_PILOT + 1
    buckets = _buckets(keys, num_pilots)
    sizes = np.bincount(buckets, minlength=num_pilots)
    order = np.argsort(buckets, kind="stable")
    ends = np.cumsum(sizes)
    hardest = np.argsort(-sizes, kind="stable")
    while True:
        slots, pilots, placed = _place(keys, values, longer, num_slots, order, sizes, ends, hardest)
        if placed:
            return slots, pilots
        num_slots += num_slots // 8 + 1  # some bucket found no pilot: try a larger table


@compiled
def _buckets(keys: Words, num_pilots: int) -> NDArray[np.int64]:
    buckets = np.empty(len(keys), np.int64)
    for run in range(len(keys)):
        buckets[run] = pilot_of(keys[run], num_pilots)
    return buckets


@compiled
def _place(
    keys: Words,
    values: Words,
    longer: NDArray[np.bool_],
    num_slots: int,
    order: NDArray[np.int64],
    sizes: NDArray[np.int64],
    ends: NDArray[np.int64],
    hardest: NDArray[np.int64],
) -> tuple[Words, NDArray[np.uint16], bool]:
    """Find the smallest pilot of each bucket that maps all its runs to free slots, fullest buckets first.

    Args:
        keys: Keys of the runs, (num_runs,).
        values: Values of their slots, (num_runs,).
        longer: Whether a longer run begins with each run, (num_runs,).
        num_slots: Size of the table.
        order: Runs by bucket, (num_runs,).
        sizes: Number of runs in each bucket, (num_pilots,).
        ends: End of each bucket's part of `order`, (num_pilots,).
        hardest: Buckets in descending order of their number of runs, (num_pilots,).
    """
    pilots = np.zeros(len(sizes), np.uint16)
    slots = np.zeros(2 * num_slots, U)
    for slot in range(num_slots):
        slots[2 * slot + 1] = NO_ENTRY
    taken = np.zeros(num_slots, np.bool_)
    # Large buckets are the hardest to place, so they come first while most slots are free.
    for bucket in hardest:
        runs = order[ends[bucket] - sizes[bucket] : ends[bucket]]
        for pilot in range(MAX_PILOT):
            num_free = 0
            for run in runs:
                slot_index = pilot_slot(keys[run], pilot, U(num_slots))
                if taken[slot_index]:
                    break
                taken[slot_index] = True
                num_free += 1
            if num_free == len(runs):
                break
            # This pilot collides. Free the slots that it has taken, and try the next one.
            for run in runs[:num_free]:
                taken[pilot_slot(keys[run], pilot, U(num_slots))] = False
        else:
            return slots, pilots, False
        pilots[bucket] = pilot
        for run in runs:
            word = pilot_slot(keys[run], pilot, U(num_slots)) * U(2)
            slots[word], slots[word + ONE] = keys[run] | U(longer[run]), values[run]
    return slots, pilots, True
