"""Tensors without contents: values are read as zero, sizes are the largest, and devices need not be there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import nms

from train_toy import Pairs, Probe, Regression, plan
from vfm.train import estimate_training
from vfm.train.cost.contentless import contentless


def test_what_the_host_reads_is_zero() -> None:
    with contentless():
        ones = torch.ones(2, 3)
        assert ones[0, 0].item() == 0.0
        assert int(torch.randint(1, 9, ())) == 0
        assert not torch.ones(()).bool()
        assert ones.tolist() == [[0.0] * 3] * 2
        assert ones.numpy().shape == (2, 3)
    assert torch.ones(2).tolist() == [1.0, 1.0]


def test_a_mask_selects_its_share_and_a_condition_holds_everywhere() -> None:
    with contentless(selected=0.25):
        values = torch.zeros(8, 5, requires_grad=True)
        mask = torch.zeros(8, dtype=torch.bool)
        assert values[mask].shape == (2, 5)
        assert values[torch.zeros(8, 5, dtype=torch.bool)].shape == (10,)
        assert torch.where(mask)[0].shape == (8,)
        assert torch.unique(torch.zeros(8)).shape == (1,)
        assert nms(torch.zeros(8, 4), torch.zeros(8), 0.5).shape == (8,)
        values[mask].sum().backward()
        assert values.grad is not None
        target = torch.zeros(8, 5)
        target[mask] = torch.ones(2, 5)


def test_a_device_that_is_not_there_refuses_tensors_of_the_host() -> None:
    with contentless():
        there = torch.ones(4, device="cuda")
        assert (there.exp() * 2).device.type == "cuda"
        with pytest.raises(RuntimeError, match="different devices"):
            there * torch.ones(4)


def test_the_disk_holds_the_checkpoints_that_stay_and_the_best_weights() -> None:
    def disk(**changes: Any) -> int:
        with torch.device("meta"):
            task = Regression()
        made = plan(steps=40, **changes)
        found = estimate_training(task, lambda count: Pairs(torch.zeros(count, 4), torch.zeros(count, 1)), made).disk
        assert found
        return found

    two = disk(checkpoint={"keep_last": 2})
    one = disk(checkpoint={"keep_last": 3}) - two
    assert disk(checkpoint={"keep_last": 2, "keep_every": 10}) == two + 4 * one
    best = {"tasks": [Probe(name="probe")], "every_steps": 10, "keep_best": "val/probe/answer"}
    assert disk(checkpoint={"keep_last": 2}, **best) == two + 3 * 4 * sum(map(torch.numel, Regression().parameters()))
