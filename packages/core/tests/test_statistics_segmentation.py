"""Mean IoU and panoptic quality beside plain twins, and their resamples beside repeated images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from vfm.statistics.mean_iou import MeanIou, count_pixels
from vfm.statistics.panoptic_quality import PanopticQuality, Segments, count_segments

Ints = NDArray[np.int64]


def iou_plain(pairs: list[tuple[Ints, Ints]], num_classes: int) -> list[float]:
    """Compute the IoU of each class from its pixels in all images."""
    found = []
    for label in range(num_classes):
        inner = union = 0
        for truth, predicted in pairs:
            known = truth >= 0
            a, b = (truth == label) & known, (predicted == label) & known
            inner, union = inner + int((a & b).sum()), union + int((a | b).sum())
        found.append(inner / union if union else float("nan"))
    return found


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_mean_iou_and_its_resamples_equal_repeated_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [(rng.integers(-1, 4, (5, 6)), rng.integers(0, 4, (5, 6))) for _ in range(4)]
    table = MeanIou.of([count_pixels(*pair, 6) for pair in pairs])
    np.testing.assert_allclose(table.by_class(), iou_plain(pairs, 6), rtol=1e-12)
    assert np.isnan(table.by_class()[4:]).all()
    weights = rng.multinomial(4, [0.25] * 4, size=3)
    for found, weight in zip(table.by_class(weights), weights, strict=True):
        repeated = [pair for pair, count in zip(pairs, weight, strict=True) for _ in range(count)]
        np.testing.assert_allclose(found, iou_plain(repeated, 6), rtol=1e-12)  # NaN for a class that it lacks


def test_scores_of_maps() -> None:
    truth = np.array([[0, 0, 1, -1]])
    scores = {one.metric: one for one in MeanIou.of([count_pixels(truth, np.array([[0, 1, 1, 1]]), 2)] * 3).scores()}
    assert scores["miou"].value == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert scores["pixel_acc"].value == pytest.approx(2 / 3)
    assert scores["mean_acc"].value == pytest.approx(3 / 4)
    low, high = scores["miou"].interval()
    assert (low, high) == pytest.approx((0.5, 0.5))  # equal images have no spread
    assert scores["miou"].num_independent == 3


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="maps of one size"):
        count_pixels(np.zeros((2, 2), dtype=int), np.zeros((2, 3), dtype=int), 2)
    with pytest.raises(ValueError, match="expected classes 0 to 1, got 5 to 5"):
        count_pixels(np.zeros((1, 1), dtype=int), np.full((1, 1), 5), 2)


def random_segments(rng: np.random.Generator, crowds: bool) -> Segments:
    numbers = np.full((8, 9), -1)
    count = int(rng.integers(1, 6))
    for number in range(count):
        top, left = rng.integers(0, 6, 2)
        numbers[top : top + rng.integers(2, 6), left : left + rng.integers(2, 7)] = number
    crowd = (rng.random(count) < 0.3) if crowds else np.zeros(count, dtype=bool)
    return Segments(numbers, rng.integers(0, 3, count), crowd)


def quality_plain(truth: Segments, found: Segments, num_classes: int) -> list[tuple[float, int, int, int]]:
    """Match segment by segment, as the paper and its official code describe."""
    crowd: Any = truth.crowd
    void = truth.numbers == -1
    iou, true, wrong, missed = [0.0] * num_classes, [0] * num_classes, [0] * num_classes, [0] * num_classes
    used_true, used_found = set(), set()
    for a in range(len(truth.labels)):
        for b in range(len(found.labels)):
            mask_a, mask_b = truth.numbers == a, found.numbers == b
            if crowd[a] or truth.labels[a] != found.labels[b] or not (mask_a & mask_b).any():
                continue
            inner = (mask_a & mask_b).sum()
            union = mask_a.sum() + mask_b.sum() - inner - (void & mask_b).sum()
            if inner / union > 0.5:
                iou[truth.labels[a]] += inner / union
                true[truth.labels[a]] += 1
                used_true.add(a)
                used_found.add(b)
    for a, label in enumerate(truth.labels.tolist()):
        if a not in used_true and not crowd[a] and (truth.numbers == a).any():
            missed[label] += 1
    for b, label in enumerate(found.labels.tolist()):
        mask = found.numbers == b
        if b in used_found or not mask.any():
            continue
        beside = void.copy()
        for a in range(len(truth.labels)):
            if crowd[a] and truth.labels[a] == label:
                beside |= truth.numbers == a
        if (mask & beside).sum() / mask.sum() <= 0.5:
            wrong[label] += 1
    return list(zip(iou, true, wrong, missed, strict=True))


@settings(max_examples=120)
@given(st.integers(0, 2**32 - 1))
def test_panoptic_counts_equal_the_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = random_segments(rng, crowds=True), random_segments(rng, crowds=False)
    counts = count_segments(truth, found, 3)
    ours = list(zip(counts.iou, counts.true, counts.wrong, counts.missed, strict=True))
    np.testing.assert_allclose(ours, quality_plain(truth, found, 3), rtol=1e-12)


def test_panoptic_quality_of_the_truth_is_one_and_weights_count_images() -> None:
    rng = np.random.default_rng(1)
    truths = [random_segments(rng, crowds=False) for _ in range(5)]
    found = [truths[0], truths[1], *(random_segments(rng, crowds=False) for _ in range(3))]
    table = PanopticQuality.of([count_segments(a, b, 3) for a, b in zip(truths, found, strict=True)])
    perfect = PanopticQuality.of([count_segments(a, a, 3) for a in truths])
    assert all(one.value == pytest.approx(1.0) for one in perfect.scores(np.array([True, True, False])))
    weights = np.array([[2, 0, 1, 2, 0]])
    repeated = [(truths[n], found[n]) for n in (0, 0, 2, 3, 3)]
    again = PanopticQuality.of([count_segments(a, b, 3) for a, b in repeated])
    once = np.ones((1, 5), dtype=np.int64)
    np.testing.assert_allclose(table.by_class(weights)["pq"], again.by_class(once)["pq"], rtol=1e-12)
    named = {one.metric for one in table.scores(np.array([True, True, False]))}
    assert named <= {"pq", "sq", "rq", "pq_things", "pq_stuff"}
    low, high = table.scores(np.array([True, True, True]))[0].interval()
    assert 0 <= low <= high <= 1


def test_the_interval_of_segmentation_quality_has_its_value_inside() -> None:
    """A class without matches scores 0, in more resamples than sets. Their interval lay below the value."""
    rng = np.random.default_rng(0)
    true = (rng.random((60, 12)) < 0.15).astype(np.int64)  # few matches of each class
    missed = (rng.random((60, 12)) < 0.3).astype(np.int64)
    iou = true * rng.uniform(0.6, 0.95, true.shape)
    table = PanopticQuality(iou, true, np.zeros_like(true), missed)
    once = np.ones((1, 60), dtype=np.int64)
    quality = next(one for one in table.scores(np.ones(12, dtype=bool)) if one.metric == "sq")
    assert quality.value == pytest.approx(float(np.mean(table.by_class(once)["sq"])))
    low, high = quality.interval()
    assert low < quality.value - 0.005
    assert high > quality.value + 0.005
