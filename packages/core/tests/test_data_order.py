"""The order of samples, on which every epoch, restart, rank and worker relies."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from vfm.data.samples.order import SameEpochs, SampleOrder

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
WINDOWS = st.integers(1, 15)
SEEDS = st.integers(0, 2**31)


@given(SIZES, WINDOWS, SEEDS, st.integers(0, 3))
def test_every_epoch_is_a_permutation(sizes, window, seed, epoch):
    order = SampleOrder(SameEpochs(sizes), seed=seed, shuffle_shards=window)
    n = sum(sizes)
    assert sorted(order(epoch * n, (epoch + 1) * n)) == list(range(n))


@given(SIZES, WINDOWS, SEEDS, st.integers(0, 100), st.integers(0, 100))
def test_stream_entered_anywhere_is_the_tail_of_the_whole(sizes, window, seed, start, length):
    whole = SampleOrder(SameEpochs(sizes), seed=seed, shuffle_shards=window)(0, start + length)
    entered = SampleOrder(SameEpochs(sizes), seed=seed, shuffle_shards=window)(start, start + length)
    assert entered.tolist() == whole[start:].tolist()


@given(SIZES, WINDOWS, SEEDS, st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_pieces_in_any_order_are_parts_of_one_stream(sizes, window, seed, places):
    order = SampleOrder(SameEpochs(sizes), seed=seed, shuffle_shards=window)
    whole = SampleOrder(SameEpochs(sizes), seed=seed, shuffle_shards=window)(0, 70)
    for place in places:
        assert order(place, place + 7).tolist() == whole[place : place + 7].tolist()


@given(SIZES, WINDOWS, SEEDS)
def test_window_has_only_the_samples_of_its_shards(sizes, window, seed):
    order = SampleOrder(SameEpochs(sizes), seed=seed, shuffle_shards=window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    seen = shard_of[order(0, sum(sizes))]
    shards = np.random.default_rng((seed, 0)).permutation(len(sizes))
    place = 0
    for first in range(0, len(sizes), window):
        chosen = shards[first : first + window]
        length = sum(sizes[shard] for shard in chosen)
        assert set(seen[place : place + length]) == {shard for shard in chosen if sizes[shard]}
        place += length


def test_epochs_and_seeds_differ_and_samples_mix_across_the_window():
    order = SampleOrder(SameEpochs([100] * 10), seed=0, shuffle_shards=10)
    first, second = order(0, 1000), order(1000, 2000)
    assert (first != second).mean() > 0.9
    assert (first != SampleOrder(SameEpochs([100] * 10), seed=1, shuffle_shards=10)(0, 1000)).mean() > 0.9
    assert len({sample // 100 for sample in first[:100].tolist()}) == 10


def test_entering_a_pool_of_a_billion_samples_needs_the_memory_of_a_window():
    import tracemalloc

    sizes = np.full(100_000, 10_000)
    tracemalloc.start()
    order = SampleOrder(SameEpochs(sizes), seed=3, shuffle_shards=10)
    assert len(set(order(10**9 + 123_456_789, 10**9 + 123_457_789).tolist())) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_window_of_no_shards_is_refused():
    with pytest.raises(ValueError, match="shuffle_shards must be at least 1, got 0"):
        SampleOrder(SameEpochs([3]), seed=0, shuffle_shards=0)


def test_order_of_shards_and_of_the_first_window_are_different_draws():
    same = 0
    for seed in range(20):
        order = SampleOrder(SameEpochs([1] * 30), seed=seed, shuffle_shards=30)
        shards = np.random.default_rng((seed, 0)).permutation(30)
        twice = shards.copy()
        np.random.default_rng((seed, 0)).shuffle(twice)
        same += order(0, 30).tolist() == twice.tolist()
    assert same == 0
