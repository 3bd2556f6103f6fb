"""Batches for measurements: distinct samples from all shards, on the task's device."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from diva_toy import make_prior_inputs, prior_config, prior_task, run
from vfm.data import TrainingData, open_dataset
from vfm.plugin import ClipCheckpoint, Pool, TrainingRuntime, UserError
from vfm_diva.generator.inputs import sample_batches, usable_samples

CPU = torch.device("cpu")


@pytest.fixture
def data(clip: ClipCheckpoint, pool: Pool) -> TrainingData[Any]:
    return TrainingData(open_dataset(pool), make_prior_inputs(prior_task(clip)), global_batch_size=16)


def test_samples_come_from_all_shards_and_none_twice(data: TrainingData[Any]) -> None:
    whole = [key for batch in sample_batches(data, CPU, num_batches=9, batch_size=40) for key in batch.keys]
    assert len(whole) == len(set(whole)) == 80  # of 96: no batch is completed from the next epoch
    shard_of = {data.source.key(index): data.source.locate(index)[0] for index in range(len(data.source))}
    assert {shard_of[key] for key in whole[:8]} == {0, 1}
    assert whole[:8] == [sample.key for sample, _ in islice(usable_samples(data), 8)]
    (everything,) = sample_batches(data, CPU, num_batches=9, batch_size=1000)
    assert set(everything.keys) == set(data.source.keys)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_batches_are_on_the_device(device: str, data: TrainingData[Any]) -> None:
    (batch,) = sample_batches(data, torch.device(device), num_batches=1, batch_size=4)
    tensors = [value for value in vars(batch.inputs).values() if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {device}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_the_prior_is_moved_to_its_device_before_the_data_are_measured(
    clip: ClipCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    shutil.copytree(pool.path, tmp_path / "empty", ignore=shutil.ignore_patterns("*.tar"))
    config = prior_config().model_copy(update={"runtime": TrainingRuntime(device="cuda")})
    with pytest.raises(UserError, match="no CUDA device is visible"):
        run(config, tmp_path / "prior", clip=clip, pool=Pool.load(tmp_path / "empty"))
