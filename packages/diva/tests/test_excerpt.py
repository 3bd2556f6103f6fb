"""What is measured and shown comes from all over the data, and lies where the task is."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch

from diva_toy import make_samples, prior_plan, prior_task, run
from vfm.artifacts import ClipCheckpoint, Pool
from vfm.config import UserError
from vfm.data.loader import TrainingData
from vfm.data.source import open_dataset
from vfm.stage import Runtime
from vfm_diva.excerpt import excerpt, usable
from vfm_diva.prior_task import PriorTask


@pytest.fixture
def task(clip: ClipCheckpoint) -> PriorTask:
    return prior_task(clip)


@pytest.fixture
def data(task: PriorTask, pool: Pool) -> TrainingData:
    return TrainingData(open_dataset(pool), make_samples(task), global_batch_size=16)


def test_the_first_few_come_from_all_shards_and_none_comes_twice(task: PriorTask, data: TrainingData) -> None:
    whole = [key for batch in excerpt(data, task, num_batches=9, batch_size=40) for key in batch["keys"]]
    assert len(whole) == len(set(whole)) == 80  # of 96: no batch is filled up from the next epoch
    shard_of = {data.source.key(index): data.source.locate(index)[0] for index in range(len(data.source))}
    assert {shard_of[key] for key in whole[:8]} == {0, 1}
    assert whole[:8] == [sample.key for sample, _ in islice(usable(data), 8)]
    (everything,) = excerpt(data, task, num_batches=9, batch_size=1000)
    assert set(everything["keys"]) == set(data.source.keys)


def test_the_batches_lie_where_the_task_is(task: PriorTask, data: TrainingData) -> None:
    for device in ("cpu", "meta"):
        (batch,) = excerpt(data, task.to(device), num_batches=1, batch_size=4)
        assert {value.device.type for value in batch.values() if isinstance(value, torch.Tensor)} == {device}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_the_prior_goes_to_its_device_before_anything_is_measured(
    clip: ClipCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    shutil.copytree(pool.path, tmp_path / "empty", ignore=shutil.ignore_patterns("*.tar"))
    plan = prior_plan().model_copy(update={"runtime": Runtime(device="cuda")})
    with pytest.raises(UserError, match="no CUDA device is visible here"):
        run(plan, tmp_path / "prior", clip=clip, pool=Pool.load(tmp_path / "empty"))
