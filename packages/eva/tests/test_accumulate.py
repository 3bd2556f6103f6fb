"""A step's loss and gradient are those of one big batch, however it is cut: with masks of unequal count too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eva_toy import losses, make_task, run, run_in_processes
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
    two = run_in_processes(tmp_path / "two", settings | {"micro_batch_size": 2}, pool, teacher)
    assert losses(two) == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    ours, theirs = (load_file(root / "artifact" / "model.safetensors") for root in (two, tmp_path / "one"))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
