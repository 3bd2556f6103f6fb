"""A step's loss and gradient are those of one big batch, however it is cut: with masks of unequal count too."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import eva_toy
from eva_toy import losses, make_task, run
from vfm.models import load_clip
from vfm.train import Task
from vfm_eva import EvaTask, Teacher


@pytest.fixture
def task(teacher) -> EvaTask:
    clip = load_clip(teacher)
    return make_task(Teacher(clip, clip.preprocess))


def ragged_batch() -> dict[str, Any]:
    """Six pictures whose masks hide 7, 1, 4, 0, 9 (beyond what the head reads) and 2 patches."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    bool_mask = torch.zeros(6, 16, dtype=torch.bool)
    for row, count in enumerate([7, 1, 4, 0, 9, 2]):
        bool_mask[row, torch.randperm(16, generator=generator)[:count]] = True
    return {"images": images, "bool_mask": bool_mask, "keys": list("abcdef"), "bad": []}


def parts(batch: dict[str, Any], *sizes: int) -> list[dict[str, Any]]:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    cuts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [{name: value[cut] for name, value in batch.items()} for cut in cuts]


def step(task: EvaTask, micro_batches: list[dict[str, Any]], accumulate: Any = EvaTask.accumulate) -> list[Tensor]:
    task.zero_grad()
    metrics = accumulate(task, task, micro_batches, torch.autograd.backward, lambda index: None)
    return [metrics["loss"], *(param.grad.clone() for param in task.parameters() if param.grad is not None)]


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (2, 2, 2), (1,) * 6])
def test_micro_batches_are_the_big_batch(task, sizes):
    batch = ragged_batch()
    whole = step(task, [batch])
    torch.testing.assert_close(step(task, parts(batch, *sizes)), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole[0], task(batch)[0].detach())


def test_equal_weights_would_not_be(task):
    batch = ragged_batch()
    plain = step(task, parts(batch, 3, 3), Task.accumulate)
    assert abs(plain[0] - task(batch)[0]).item() > 1e-3


def test_a_micro_batch_and_a_step_that_mask_nothing_count_for_nothing(task):
    batch = ragged_batch()
    nothing = {**batch, "bool_mask": torch.zeros(6, 16, dtype=torch.bool)}
    both = {name: torch.cat([batch[name], nothing[name]]) for name in ("images", "bool_mask")}
    expected = step(task, [{**both, "keys": list("abcdefghijkl")}])
    torch.testing.assert_close(step(task, [batch, nothing]), expected, atol=1e-6, rtol=0)
    assert not any(value.any() for value in step(task, [nothing]))


@pytest.mark.parametrize("mask", ["block", "block_exact"])
def test_two_processes_and_micro_batches_give_the_losses_of_one(tmp_path, pool, teacher, mask):
    settings = {"mask": mask, "mask_ratio": 0.6, "steps": 4, "global_batch_size": 12}
    run(tmp_path / "one", settings, pool=pool, teacher=teacher)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    children = []
    for rank in range(2):  # each writes its artifact into a folder of its own, as the flow has it
        arguments = [str(tmp_path / f"two-{rank}"), str(pool.path), str(teacher.path)]
        command = [sys.executable, eva_toy.__file__, *arguments, json.dumps(settings | {"micro_batch_size": 2})]
        environment = {**os.environ, **shared, "RANK": str(rank)}
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for child in children:
        _, stderr = child.communicate(timeout=120)
        assert child.returncode == 0, stderr
    assert losses(tmp_path / "two-0") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    one, two = (load_file(tmp_path / name / "artifact" / "model.safetensors") for name in ("one", "two-0"))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
