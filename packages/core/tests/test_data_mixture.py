"""Mixtures: shares by weight, each source's own order, and entering the stream anywhere."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from data_samples import encoded, make_pool, number_of
from vfm.base import UserError
from vfm.data import Mixture, TrainingData, open_dataset
from vfm.data.index.mixture import BLOCK, turns_of
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import Context

SIZES = ([7, 5], [9], [3, 3, 3])


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    root = tmp_path_factory.mktemp("mixture")
    return Mixture([open_dataset(make_pool(root / str(n), sizes)) for n, sizes in enumerate(SIZES)], [4, 3, 1])


def part(number: int) -> int:
    return (number >= 12) + (number >= 21)


def test_each_source_has_its_share_independent_of_its_size(mixture: Mixture) -> None:
    order = mixture.order(seed=0, shuffle_shards=2)
    for start in (0, BLOCK, 7 * BLOCK):
        counts = Counter(part(number) for number in order(start, start + BLOCK).tolist())
        assert [counts[n] for n in range(3)] == mixture.turns.tolist() == [2048, 1536, 512]
    assert Counter(part(number) for number in order(0, 200).tolist())[0] == pytest.approx(100, abs=25)


def test_each_source_keeps_its_own_order_over_epochs(mixture: Mixture) -> None:
    mixed = mixture.order(seed=5, shuffle_shards=1).of_epochs(0, 300)
    for number, source in enumerate(mixture.sources):
        own = [(epoch, index - int(mixture.starts[number])) for epoch, index in mixed if part(index) == number]
        assert own == source.order(seed=5, shuffle_shards=1).of_epochs(0, len(own))


@given(start=st.integers(0, 3 * BLOCK), length=st.integers(0, 40))
@settings(max_examples=30)
def test_stream_can_be_entered_anywhere(mixture: Mixture, start: int, length: int) -> None:
    order = mixture.order(seed=1, shuffle_shards=2)
    middle = start + length // 2
    whole = order.of_epochs(start, start + length)
    assert whole == order.of_epochs(start, middle) + order.of_epochs(middle, start + length)
    assert whole == mixture.order(seed=1, shuffle_shards=2).of_epochs(start, start + length)


def test_numbers_map_to_the_samples_of_their_source_in_every_process(mixture: Mixture) -> None:
    again = pickle.loads(pickle.dumps(mixture))
    for number in (0, 11, 12, 20, 21, 29):
        source = mixture.sources[part(number)]
        inside = number - int(mixture.starts[part(number)])
        assert mixture[number].key == again.sample(number, 3).key == source[inside].key
        assert mixture.where(number) == source.where(inside)
    with pytest.raises(IndexError):
        mixture[30]


def test_samples_with_equal_keys_get_different_uids_unless_the_data_give_uids(tmp_path: Path) -> None:
    rows = [{"key": "0", "uid": uid, "caption": "a dog", "image": encoded(0)} for uid in ("given", None)]
    pools = []
    for name in "ab":
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        table = Pairs(name=name, path=str(tmp_path / f"{name}.parquet"))
        pools.append(table.run(Context(name, tmp_path / name, tmp_path / "work", {})))
    mixed = Mixture([open_dataset(pool) for pool in pools], [1, 1])
    uids = [mixed[number].uid for number in range(4)]
    assert uids == [mixed.sample(number, 2).uid for number in range(4)]
    assert uids[0] == uids[2] == "given"
    assert len(set(uids)) == 3
    assert len({source[1].uid for source in mixed.sources}) == 1


def test_bad_sample_is_replaced_by_one_of_its_own_source(tmp_path: Path) -> None:
    broken = {n: {"png": None} for n in range(4)}
    pools = [make_pool(tmp_path / "a", [6], broken=broken), make_pool(tmp_path / "b", [50])]
    data = TrainingData(
        Mixture([open_dataset(pool) for pool in pools], [1, 1]), number_of, global_batch_size=64, max_bad_fraction=0.9
    )
    ((batch,),) = data.steps(0, 1)
    places = data.order()(0, 64).tolist()
    taken = [str(key) for key in batch.keys]
    assert batch.bad
    for place, key in zip(places, taken, strict=True):
        if place < 6:
            assert key in {"000004", "000005"}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_turns_fill_a_block_and_are_the_weights_rounded(weights: list[float]) -> None:
    turns = turns_of(weights)
    assert turns.sum() == BLOCK
    assert all(
        abs(turn - BLOCK * weight / sum(weights)) < 1 + 1e-9 for turn, weight in zip(turns, weights, strict=True)
    )


def test_empty_source_and_tiny_weight_are_refused(tmp_path: Path) -> None:
    sources = [open_dataset(make_pool(tmp_path / name, [2])) for name in ("a", "b")]
    with pytest.raises(UserError, match="b: its weight must be at least 1/4096 of the sum of weights"):
        Mixture(sources, [1e6, 1])
    empty = open_dataset(make_pool(tmp_path / "c", []))
    with pytest.raises(UserError, match="c: the dataset has no samples to train on"):
        Mixture([sources[0], empty], [1, 1])
