"""A step's loss and gradient do not depend on its micro-batches and processes, also with masks of unequal counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eva_toy import batch_of, losses, make_task, run, run_in_processes
from vfm.data import Batch, map_tensors
from vfm.models import load_clip
from vfm.train import Task
from vfm_eva.pretrain.task import EvaInputs, EvaTask
from vfm_eva.targets.teacher import Teacher


@pytest.fixture
def task(teacher) -> EvaTask:
    clip = load_clip(teacher)
    return make_task(Teacher(clip, clip.preprocess))


def ragged_inputs() -> EvaInputs:
    """Return six images whose masks hide 7, 1, 4, 0, 9 (more than `num_masked`) and 2 patches."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    bool_mask = torch.zeros(6, 16, dtype=torch.bool)
    for row, count in enumerate([7, 1, 4, 0, 9, 2]):
        bool_mask[row, torch.randperm(16, generator=generator)[:count]] = True
    return EvaInputs(images, bool_mask)


def parts(inputs: EvaInputs, *sizes: int) -> list[Batch[EvaInputs]]:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    cuts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [batch_of(map_tensors(inputs, lambda value, cut=cut: value[cut])) for cut in cuts]


def step(task: EvaTask, micro_batches: list[Batch[EvaInputs]]) -> list[Tensor]:
    task.zero_grad()
    metrics = task.accumulate(
        lambda batch: task(batch.inputs), micro_batches, torch.autograd.backward, lambda index: None
    )
    return [metrics["loss"], *(param.grad.clone() for param in task.parameters() if param.grad is not None)]


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (2, 2, 2), (1,) * 6])
def test_micro_batches_equal_the_whole_batch(task, sizes):
    inputs = ragged_inputs()
    whole = step(task, [batch_of(inputs)])
    torch.testing.assert_close(step(task, parts(inputs, *sizes)), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole[0], task(inputs)[0].detach())


def test_equal_weights_of_micro_batches_would_differ(task, monkeypatch):
    inputs = ragged_inputs()
    monkeypatch.setattr(EvaTask, "micro_batch_weights", Task.micro_batch_weights)
    assert abs(step(task, parts(inputs, 3, 3))[0] - task(inputs)[0]).item() > 1e-3


def test_a_micro_batch_without_masked_patches_has_no_weight(task):
    inputs = ragged_inputs()
    nothing = replace(inputs, bool_mask=torch.zeros(6, 16, dtype=torch.bool))
    both = EvaInputs(inputs.images.repeat(2, 1, 1, 1), torch.cat([inputs.bool_mask, nothing.bool_mask]))
    expected = step(task, [batch_of(both)])
    torch.testing.assert_close(step(task, [batch_of(inputs), batch_of(nothing)]), expected, atol=1e-6, rtol=0)
    assert not any(value.any() for value in step(task, [batch_of(nothing)]))


@pytest.mark.parametrize(("mask", "parallel"), [("block", "ddp"), ("block_exact", "ddp"), ("block", "fsdp")])
def test_two_processes_with_micro_batches_have_the_losses_of_one(tmp_path, pool, teacher, mask, parallel):
    settings = {"mask": {"type": mask, "ratio": 0.6}, "steps": 4, "global_batch_size": 12}
    settings["student"] = {"patch_embed_grad": 0.1}
    run(tmp_path / "one", settings, pool=pool, teacher=teacher)
    shared = {"micro_batch_size": 2, "runtime": {"device": "cpu", "parallel": parallel}}
    two = run_in_processes(tmp_path / "two", settings | shared, pool, teacher)
    assert losses(two) == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    ours, theirs = (load_file(root / "artifact" / "model.safetensors") for root in (two, tmp_path / "one"))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
