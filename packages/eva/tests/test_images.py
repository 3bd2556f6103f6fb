"""A sample's crop and mask are its own, and a teacher of another size sees the same part of the picture."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from vfm import UserError
from vfm.data.loader import TrainingData
from vfm.data.source import open_dataset
from vfm.data.transforms import ImageTransform
from vfm_eva import MakeViews, MaskedData, Masks
from vfm_eva.masks import MASKS

CROP = ImageTransform(32, scale=(0.2, 1.0), flip=0.5)


def batches(pool: Any, masks: Masks, **sizes: int) -> dict[str, torch.Tensor]:
    """The third step's tensors, whatever parts it comes in."""
    data = MaskedData(TrainingData(open_dataset(pool), MakeViews(CROP), global_batch_size=8), masks)
    world_size, micro = sizes.pop("world_size", 1), sizes.pop("micro_batch_size", 8)
    parts = [
        part
        for rank in range(world_size)
        for part in next(data.steps(2, 3, rank=rank, world_size=world_size, micro_batch_size=micro))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in ("images", "bool_mask")}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_do_not_depend_on_batch_rank_or_micro_batch(pool, mask):
    masks = Masks(mask, (4, 4), 7)
    whole = batches(pool, masks)
    assert len({tuple(row) for row in whole["bool_mask"].tolist()}) > 1
    assert (whole["bool_mask"].sum(1) <= 7).all()
    for sizes in ({"micro_batch_size": 2}, {"micro_batch_size": 3}, {"world_size": 2}):
        parts = batches(pool, masks, **sizes)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_the_thread_that_draws_masks_passes_errors_on_and_ends_with_the_steps(pool):
    data = MaskedData(TrainingData(open_dataset(pool), MakeViews(CROP), global_batch_size=8), Masks("block", (4, 4), 7))
    steps = data.steps(0, 50, micro_batch_size=8)
    next(steps)
    assert any(thread.name.startswith("masks") for thread in threading.enumerate())
    steps.close()
    assert not any(thread.name.startswith(("masks", "loader")) for thread in threading.enumerate())
    assert len(list(data.steps(0, 3, micro_batch_size=8))) == 3
    with pytest.raises(UserError, match="global_batch_size 8 does not divide by 3 processes"):
        next(data.steps(0, 3, world_size=3, micro_batch_size=8))


def test_a_teacher_of_another_size_sees_the_same_part_of_the_picture(pool):
    source = open_dataset(pool)
    teacher = ImageTransform(48, scale=(0.2, 1.0), flip=0.5, interpolation="bilinear")
    make = MakeViews(CROP, teacher)
    for index in range(20):
        sample = source[index]
        made = make(sample, index)
        assert torch.equal(made["teacher_images"], teacher(sample.image, index))
        small = torch.nn.functional.interpolate(made["teacher_images"][None].float(), 32, mode="area")[0]
        assert (small - made["images"].float()).abs().mean() < 12  # of 255


def test_a_teacher_of_the_same_ways_costs_no_second_picture(pool):
    sample = open_dataset(pool)[0]
    assert set(MakeViews(CROP, CROP)(sample, 0)) == {"images", "mask_seed"}
