"""Batches depend only on the step: not on workers, processes, micro-batches, restarts or bad samples."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from data_samples import make_pool, number_of
from vfm.base import UserError
from vfm.data import SampleDraw, TrainingData, eval_batches, open_dataset

SIZES = [7, 5, 8, 4]


@pytest.fixture
def source(tmp_path):
    return open_dataset(make_pool(tmp_path / "pool", SIZES))


def training(source, **changes) -> TrainingData:
    arguments = {"seed": 3, "global_batch_size": 6, "shuffle_shards": 2, **changes}
    return TrainingData(source, number_of, **arguments)


def flat(steps) -> list[list[tuple[int, int, bytes]]]:
    """Return number, seed and pixels of each step's samples."""
    return [
        [
            (int(number), int(seed), image.numpy().tobytes())
            for batch in step
            for number, seed, image in zip(*vars(batch.inputs).values(), strict=True)
        ]
        for step in steps
    ]


def test_epoch_has_every_sample_once_with_its_key(source):
    steps = list(training(source).steps(0, 4))
    numbers = [int(number) for step in steps for batch in step for number in batch.inputs.number]
    assert sorted(numbers) == list(range(sum(SIZES)))
    assert all([int(key) for key in batch.keys] == batch.inputs.number.tolist() for step in steps for batch in step)


def test_resumed_training_sees_the_rest_of_the_stream(source):
    whole = flat(training(source).steps(0, 11))
    for start in (1, 4, 5, 10):
        assert flat(training(source).steps(start, 11)) == whole[start:]


def test_ranks_are_disjoint_and_their_union_is_the_global_batch(source):
    whole = flat(training(source).steps(0, 6))
    ranks = [flat(training(source).steps(0, 6, rank=rank, world_size=3)) for rank in range(3)]
    assert [[sample for rank in ranks for sample in rank[step]] for step in range(6)] == whole
    assert all(len(rank[0]) == 2 for rank in ranks)


def test_micro_batches_are_parts_of_the_batch(source):
    whole = flat(training(source).steps(0, 3))
    pieces = list(training(source).steps(0, 3, micro_batch_size=4))
    assert flat(pieces) == whole
    assert [[len(batch) for batch in step] for step in pieces] == [[4, 2]] * 3


def test_indivisible_batch_is_refused(source):
    with pytest.raises(UserError, match="global_batch_size must be divisible by the 4 processes, got 6"):
        next(training(source).steps(0, 1, rank=0, world_size=4))


def test_global_generator_is_unchanged(source):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(training(source).steps(0, 2))
    list(eval_batches(source, number_of, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_differ_by_step_and_sample(source):
    seeds = [seed for step in flat(training(source).steps(0, 8)) for _, seed, _ in step]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= SampleDraw.of(0, 0, 0).seed < 2**63
    assert SampleDraw.of(1, 2, 3).seed != SampleDraw.of(1, 3, 2).seed


@pytest.fixture
def broken_source(tmp_path):
    broken = {n: {"txt": None} for n in (2, 9)} | {14: {"png": b"nothing"}}
    return open_dataset(make_pool(tmp_path / "broken", SIZES, broken=broken))


def test_bad_sample_is_replaced_and_reported_without_moving_others(source, broken_source):
    good = flat(training(source).steps(0, 4))
    steps = list(training(broken_source).steps(0, 4))
    replaced = 0
    for whole, step in zip(good, flat(steps), strict=True):
        assert len(step) == 6
        for before, after in zip(whole, step, strict=True):
            replaced += before != after
            assert after[0] not in (2, 9, 14)
            assert before == after or before[0] in (2, 9, 14)
    assert replaced == 3
    bad = [found for step in steps for batch in step for found in batch.bad]
    assert {(reason, where.rpartition("/")[2]) for reason, where in bad} == {
        ("missing_caption", "000.tar:000002"), ("missing_caption", "001.tar:000009"),
        ("unreadable_image", "002.tar:000014"),
    }  # fmt: skip


def test_replacements_are_the_same_for_all_workers_ranks_and_micro_batches(broken_source):
    whole = flat(training(broken_source).steps(0, 6))
    pieces = [flat(training(broken_source).steps(0, 6, rank=r, world_size=2, micro_batch_size=2)) for r in range(2)]
    assert [pieces[0][step] + pieces[1][step] for step in range(6)] == whole


def test_a_signal_to_all_processes_of_a_job_leaves_the_workers_to_the_training(broken_source):
    alone = flat(training(broken_source).steps(0, 9))
    steps = training(broken_source, workers=1).steps(0, 9)
    first = next(steps)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker.pid, number)
        time.sleep(0.3)
    assert flat([first, *steps]) == alone
    worker.join(60)
    # Torch terminates a worker that takes over five seconds to end, as on a busy machine.
    assert worker.exitcode in (0, -signal.SIGTERM)


def test_workers_change_nothing(broken_source):
    alone = flat(training(broken_source).steps(0, 6, micro_batch_size=4))
    assert flat(training(broken_source, workers=2).steps(0, 6, micro_batch_size=4)) == alone


def test_dataset_of_only_bad_samples_stops(tmp_path):
    source = open_dataset(make_pool(tmp_path / "p", [5], broken={n: {"txt": None} for n in range(5)}))
    for workers in (0, 1):
        with pytest.raises(
            UserError,
            match=r"000\.tar:00000\d: missing_caption; the 7 samples tried in its place cannot be used either",
        ) as caught:
            list(training(source, workers=workers).steps(0, 1))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no sample can be used; the first is .*000000: missing_caption"):
        list(eval_batches(source, number_of, 2))


def test_without_tolerance_the_first_bad_sample_stops(broken_source):
    with pytest.raises(UserError, match="the 0 samples tried in its place"):
        list(training(broken_source, max_bad_fraction=0.0).steps(0, 4))


def test_evaluation_has_every_good_sample_once_in_order_and_reports_bad_ones(broken_source):
    batches = list(eval_batches(broken_source, number_of, 5))
    numbers = [int(number) for batch in batches for number in batch.inputs.number]
    assert numbers == [n for n in range(24) if n not in (2, 9, 14)]
    assert [reason for batch in batches for reason, _ in batch.bad] == ["missing_caption"] * 2 + ["unreadable_image"]


def test_bad_samples_at_the_end_are_reported(tmp_path):
    source = open_dataset(make_pool(tmp_path / "p", [6], broken={n: {"txt": None} for n in (0, 1, 4, 5)}))
    batches = list(eval_batches(source, number_of, 2))
    assert [batch.keys for batch in batches] == [["000002", "000003"]]
    assert len(batches[0].bad) == 4


def test_empty_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match="no samples to train on"):
        training(open_dataset(make_pool(tmp_path / "empty", [])))
