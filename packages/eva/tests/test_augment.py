"""Large-scale jitter, flip and distortion equal torchvision's classes with the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Mask

from vfm.data import to_tensor
from vfm.data.annotated import ObjectArrays, encode_mask
from vfm_eva.dense.augment import (
    MIN_SIDE,
    PAD,
    Placement,
    distort,
    draw_distortion,
    draw_placement,
    place_image,
    place_objects,
    whole,
)

SIDE = 48


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def discs(width: int, height: int, seed: int, count: int = 4) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centre, radius = rng.random((count, 2)) * (width, height), rng.uniform(2, 14, count)
    return np.stack([(x - cx) ** 2 + (y - cy) ** 2 <= r * r for (cx, cy), r in zip(centre, radius, strict=True)])


def objects_of(masks: NDArray[np.bool_], **flags: NDArray[np.bool_]) -> ObjectArrays:
    masks = masks[masks.any(axis=(1, 2))]
    count = len(masks)
    boxes = np.zeros((count, 4))
    for place, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        boxes[place] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    none = np.zeros(count, dtype=bool)
    return ObjectArrays(
        np.zeros(count, dtype=np.int64), np.arange(count), boxes, [encode_mask(mask) for mask in masks],
        masks.sum(axis=(1, 2)).astype(float), flags.get("crowd", none), flags.get("ignored", none),
    )  # fmt: skip


def by_torchvision(sample: object, placement: Placement) -> object:
    """Apply torchvision's classes, one after another, with the draws of a placement."""
    left, top = placement.corner
    width, height = placement.covered
    resize = v2.ScaleJitter((placement.side, placement.side))
    sample = v2.Compose([lambda one: resize.transform(one, {"size": placement.resized[::-1]})])(sample)
    if placement.flip:
        sample = v2.RandomHorizontalFlip(p=1.0)(sample)
    sample = v2.functional.crop(sample, top, left, height, width)
    fill = PAD if isinstance(sample, Image.Image) else 0
    return v2.Pad([0, 0, placement.side - width, placement.side - height], fill=fill)(sample)


@settings(max_examples=30)
@given(st.integers(5, 90), st.integers(5, 90), st.integers(0, 10**6))
@example(5, 78, 5674)  # a box whose side is the limit to rounding
def test_crop_equals_torchvisions_classes(width, height, seed):
    placement = draw_placement((width, height), SIDE, (0.1, 2.0), 0.5, np.random.default_rng(seed))
    image, masks = picture(width, height), discs(width, height, seed)
    theirs = to_tensor(by_torchvision(image, placement))
    ours = place_image(image, placement)
    # Pillow keeps a crop's corner in 32 bits, so each of its two passes may round a value the other way.
    assert (ours.int() - theirs.int()).abs().max() <= 2
    objects = objects_of(masks)
    masks = np.stack([mask for mask in masks if mask.any()]) if len(objects) else masks[:0]
    placed = by_torchvision(Mask(torch.from_numpy(masks).to(torch.uint8)), placement).bool().numpy()
    size = {"format": "XYXY", "canvas_size": (height, width)}
    boxes = by_torchvision(BoundingBoxes(torch.from_numpy(objects.boxes), **size), placement)
    with_masks, without = (place_objects(objects, placement, with_masks=one) for one in (True, False))
    seen = [n for n, mask in enumerate(placed) if mask.any()]
    assert with_masks.labels.tolist() == seen
    assert np.array_equal(with_masks.masks, placed[seen])
    sanitized = v2.SanitizeBoundingBoxes(min_size=MIN_SIDE)(
        {"boxes": boxes, "labels": torch.from_numpy(objects.labels)}
    )
    ours_by_label = dict(zip(without.labels.tolist(), without.boxes.tolist(), strict=True))
    theirs_by_label = dict(zip(sanitized["labels"].tolist(), sanitized["boxes"].tolist(), strict=True))
    for label, box in {**ours_by_label, **theirs_by_label}.items():
        if min(box[2] - box[0], box[3] - box[1]) > MIN_SIDE + 1e-3:  # rounding decides at the limit itself
            assert ours_by_label[label] == pytest.approx(theirs_by_label[label], abs=1e-3)


def test_boxes_are_those_of_the_cropped_masks():
    mask = np.zeros((1, 40, 40), dtype=bool)
    mask[0, 10:20, 5:35] = True
    mask[0, 10:30, 5:15] = True
    placement = Placement((40, 40), (40, 40), (20, 0), 20)
    placed = place_objects(objects_of(mask), placement, with_masks=True)
    assert placed.boxes.tolist() == [[0, 10, 15, 20]]  # the part below is outside the crop
    assert place_objects(objects_of(mask), placement, with_masks=False).boxes.tolist() == [[0, 10, 15, 20]]


def test_crowds_ignored_and_small_objects_are_no_targets():
    masks = np.zeros((4, 30, 30), dtype=bool)
    masks[0, 2:9, 2:9] = masks[1, 12:20, 2:9] = masks[2, 2:9, 12:20] = masks[3, 25, 25] = True
    crowd, ignored = np.array([0, 1, 0, 0], dtype=bool), np.array([0, 0, 1, 0], dtype=bool)
    objects = objects_of(masks, crowd=crowd, ignored=ignored)
    half = Placement((30, 30), (15, 15), (0, 0), 15)
    assert place_objects(objects, half, with_masks=False).labels.tolist() == [0]
    assert place_objects(objects, half, with_masks=True).labels.tolist()[0] == 0


def test_object_without_mask_gets_its_box():
    objects = objects_of(discs(30, 30, 3, 1))
    bare = ObjectArrays(
        objects.image, objects.labels, np.array([[3.0, 4.0, 13.0, 24.0]]), [None], objects.areas, objects.crowd,
        objects.ignored,
    )  # fmt: skip
    placed = place_objects(bare, whole((30, 30), 60), with_masks=True)
    assert placed.boxes.tolist() == [[6, 8, 26, 48]]
    assert placed.masks.sum() == 20 * 40


def test_nothing_to_place():
    objects = objects_of(np.zeros((0, 9, 9), dtype=bool))
    placed = place_objects(objects, whole((9, 9), 12), with_masks=True)
    assert placed.boxes.shape == (0, 4)
    assert placed.masks.shape == (0, 12, 12)


@pytest.mark.parametrize("seed", range(6))
def test_distortion_equals_torchvisions_class(seed):
    drawn = draw_distortion(np.random.default_rng(seed))
    factors = {f"{name}_factor": getattr(drawn, name) for name in ("brightness", "contrast", "saturation", "hue")}
    params = {**factors, "contrast_before": drawn.contrast_first, "channel_permutation": None}
    image = to_tensor(picture(20, 10, seed))
    assert torch.equal(distort(image, drawn), v2.RandomPhotometricDistort().transform(image, params))


@settings(max_examples=30)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 10**6))
def test_draws_are_pure_and_the_crop_is_inside(width, height, seed):
    first, again = (
        draw_placement((width, height), SIDE, (0.1, 2.0), 0.5, np.random.default_rng(seed)) for _ in range(2)
    )
    assert first == again
    assert all(0 < length <= SIDE for length in first.covered)
    assert all(corner >= 0 for corner in first.corner)
    assert max(first.resized[0], first.resized[1]) <= 2 * SIDE
    assert max(whole((width, height), SIDE).covered) == SIDE
