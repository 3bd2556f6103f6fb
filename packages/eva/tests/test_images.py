"""Crops and masks depend only on the sample, and a teacher of another size gets the same part of the image."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from vfm.data import ImageTransform, SampleDraw, TrainingData, open_dataset
from vfm.plugin import UserError
from vfm_eva import BlockExactMask, BlockMask, RandomMask
from vfm_eva.pretrain.masks import MaskedData, Masks
from vfm_eva.targets.images import MakeViews

CROP = ImageTransform(32, scale=(0.2, 1.0), flip=0.5)


def batches(pool: Any, masks: Masks, **sizes: int) -> dict[str, torch.Tensor]:
    """Return the third step's tensors, joined from its parts."""
    data = MaskedData(TrainingData(open_dataset(pool), MakeViews(CROP), global_batch_size=8), masks)
    world_size, micro = sizes.pop("world_size", 1), sizes.pop("micro_batch_size", 8)
    parts = [
        part
        for rank in range(world_size)
        for part in next(data.steps(2, 3, rank=rank, world_size=world_size, micro_batch_size=micro))
    ]
    return {name: torch.cat([getattr(part.inputs, name) for part in parts]) for name in ("images", "bool_mask")}


@pytest.mark.parametrize("mask", [BlockMask(), BlockExactMask(), RandomMask()], ids=lambda mask: mask.type)
def test_masks_do_not_depend_on_batch_rank_or_micro_batch(pool, mask):
    masks = Masks(mask, (4, 4), 7)
    whole = batches(pool, masks)
    assert len({tuple(row) for row in whole["bool_mask"].tolist()}) > 1
    assert (whole["bool_mask"].sum(1) <= 7).all()
    for sizes in ({"micro_batch_size": 2}, {"micro_batch_size": 3}, {"world_size": 2}):
        parts = batches(pool, masks, **sizes)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_the_thread_that_draws_masks_raises_errors_and_ends_with_the_steps(pool):
    data = MaskedData(
        TrainingData(open_dataset(pool), MakeViews(CROP), global_batch_size=8), Masks(BlockMask(), (4, 4), 7)
    )
    steps = data.steps(0, 50, micro_batch_size=8)
    next(steps)
    assert any(thread.name.startswith("masks") for thread in threading.enumerate())
    steps.close()
    assert not any(thread.name.startswith(("masks", "loader")) for thread in threading.enumerate())
    assert len(list(data.steps(0, 3, micro_batch_size=8))) == 3
    with pytest.raises(UserError, match="global_batch_size must be divisible by the 3 processes, got 8"):
        next(data.steps(0, 3, world_size=3, micro_batch_size=8))


def test_a_teacher_of_another_size_gets_the_same_part_of_the_image(pool):
    source = open_dataset(pool)
    teacher = ImageTransform(48, scale=(0.2, 1.0), flip=0.5, interpolation="bilinear")
    make = MakeViews(CROP, teacher)
    for index in range(20):
        sample = source[index]
        made = make(sample, SampleDraw(index, 0, 0))
        assert torch.equal(made.teacher_images, teacher(sample.image, index))
        small = torch.nn.functional.interpolate(made.teacher_images[None].float(), 32, mode="area")[0]
        assert (small - made.images.float()).abs().mean() < 12  # of 255


def test_a_teacher_with_the_same_transform_needs_no_second_image(pool):
    sample = open_dataset(pool)[0]
    assert MakeViews(CROP, CROP)(sample, SampleDraw(0, 0, 0)).teacher_images is None
