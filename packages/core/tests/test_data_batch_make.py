"""Inputs made for a whole batch are those made sample by sample, and small datasets are decoded once."""

import pickle

import pytest
import torch

from data_samples import NumberTogether, drawn_texts, make_pool, number_alone
from vfm.data import Mixture, TrainingData, eval_batches, open_dataset
from vfm.data.index.source import Source
from vfm.data.loading import loader
from vfm.data.loading.batch_make import ContentMemory

SIZES = [7, 5, 8, 4]
BROKEN = {n: {"txt": None} for n in (2, 9)} | {14: {"png": b"nothing"}}


@pytest.fixture
def source(tmp_path):
    return open_dataset(make_pool(tmp_path / "pool", SIZES))


@pytest.fixture
def broken_source(tmp_path):
    return open_dataset(make_pool(tmp_path / "broken", SIZES, broken=BROKEN))


def training(source, make, **changes) -> TrainingData:
    return TrainingData(source, make, **{"seed": 3, "global_batch_size": 6, "shuffle_shards": 2, **changes})


def flat(steps):
    """List number, seed and pixels of each step's samples, and the bad samples."""
    return [
        [
            ([vars(batch.inputs)[name].tolist() for name in ("number", "seed", "image")], batch.keys, batch.bad)
            for batch in step
        ]
        for step in steps
    ]


def count_reads(monkeypatch):
    read, inner = [], Source.sample
    monkeypatch.setattr(Source, "sample", lambda self, index, epoch: read.append(index) or inner(self, index, epoch))
    return read


def test_batches_are_those_made_sample_by_sample(broken_source):
    alone, together = (training(broken_source, make) for make in (number_alone, NumberTogether()))
    for share in ({}, {"micro_batch_size": 4}, {"rank": 1, "world_size": 3}):
        assert flat(together.steps(0, 9, **share)) == flat(alone.steps(0, 9, **share))
    assert flat(together.steps(7, 9)) == flat(alone.steps(0, 9))[7:]
    evaluated, expected = (list(eval_batches(broken_source, make, 5)) for make in (NumberTogether(), number_alone))
    assert flat([evaluated]) == flat([expected])


def test_workers_make_the_same_batches(broken_source):
    alone = flat(training(broken_source, number_alone).steps(0, 9))
    assert flat(training(broken_source, NumberTogether(), workers=1).steps(0, 9)) == alone


def test_a_dataset_that_fits_is_read_once(source, monkeypatch):
    read = count_reads(monkeypatch)
    list(training(source, NumberTogether()).steps(0, 16))  # four epochs
    assert sorted(read) == list(range(24))


def test_a_dataset_that_does_not_fit_is_read_in_every_epoch(source, monkeypatch):
    monkeypatch.setattr(loader, "MEMORY_BYTES", 24 * 3 * 24 * 16)  # the images alone
    read = count_reads(monkeypatch)
    list(training(source, NumberTogether()).steps(0, 16))
    assert len(read) == 96


def test_samples_with_other_texts_in_each_epoch_are_read_again(source, monkeypatch):
    read = count_reads(monkeypatch)
    monkeypatch.setattr(Source, "same_in_epochs", False)
    list(training(source, NumberTogether()).steps(0, 8))
    assert len(read) >= 48
    assert not Mixture([source, source], [1, 1]).same_in_epochs


def test_a_mixture_that_fits_is_read_once(source, monkeypatch):
    mixture = Mixture([source, source], [1, 1])
    expected = flat(training(mixture, number_alone).steps(0, 16))
    read = count_reads(monkeypatch)
    assert flat(training(mixture, NumberTogether()).steps(0, 16)) == expected
    assert len(read) == 48


def test_memory_is_given_up_as_soon_as_the_dataset_does_not_fit():
    memory = ContentMemory(10, limit=1000)
    memory.keep(0, "key", torch.zeros(20))  # 83 bytes, 830 in all
    assert memory.get(0)
    memory.keep(1, "key", {"en": ["a" * 150]})  # 236 bytes, 1180 in all
    memory.keep(2, "key", torch.zeros(1))
    assert [memory.get(index) for index in range(3)] == [None] * 3


def test_memory_is_not_sent_to_workers():
    memory = ContentMemory(10)
    memory.keep(0, "key", "text")
    sent = pickle.loads(pickle.dumps(memory))
    assert (sent.get(0), sent.num_samples, sent.limit) == (None, 10, memory.limit)


def test_other_makes_keep_nothing(source, monkeypatch):
    read = count_reads(monkeypatch)
    list(training(source, drawn_texts).steps(0, 8))
    assert len(read) >= 48
