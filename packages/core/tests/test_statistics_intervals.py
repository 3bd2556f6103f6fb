"""Intervals compared with scipy, printed tables and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from vfm.statistics import Accuracy, to_metric
from vfm.statistics.intervals import (
    bootstrap_interval,
    effective_size,
    grouped_interval,
    mean_per_class_interval,
    t_interval,
    wilson_interval,
)


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
@settings(max_examples=60)
def test_wilson_equals_scipy(n: int, share: float) -> None:
    successes = round(n * share)
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson_interval(successes, n), (expected.low, expected.high), atol=1e-12)


def test_wilson_is_correct_at_0_and_100_percent() -> None:
    low, high = wilson_interval(0, 135)
    assert low == 0
    assert high == pytest.approx(0.0277, abs=1e-4)  # 3.84 / (135 + 3.84)
    assert wilson_interval(135, 135)[0] == pytest.approx(1 - high)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_proportions(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes"):
        wilson_interval(successes, n)


def naive_bootstrap(values: np.ndarray, groups: np.ndarray, num_resamples: int, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    members = [values[groups == g] for g in np.unique(groups)]
    means = [
        np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))]).mean()
        for _ in range(num_resamples)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("binary", [True, False])
def test_drawing_kinds_of_groups_equals_drawing_groups(binary: bool) -> None:
    generator = np.random.default_rng(3)
    groups = np.sort(generator.integers(0, 120, size=500))
    chance = generator.beta(0.5, 0.5, size=120)[groups]  # captions of one image are correlated
    values = (generator.random(500) < chance).astype(float) if binary else chance + 0.1 * generator.normal(size=500)
    fast = bootstrap_interval(values, groups, num_resamples=4000)
    slow = naive_bootstrap(values, groups, 4000, seed=1)
    np.testing.assert_allclose(fast, slow, atol=0.01)


def test_groups_widen_the_interval_of_correlated_captions() -> None:
    per_image = np.random.default_rng(0).integers(0, 2, size=200)
    captions, images = np.repeat(per_image, 5), np.repeat(np.arange(200), 5)
    alone, together = bootstrap_interval(captions), bootstrap_interval(captions, images)
    assert (together[1] - together[0]) == pytest.approx(np.sqrt(5) * (alone[1] - alone[0]), rel=0.1)


def test_bootstrap_is_near_wilson_for_independent_items_and_repeats_by_seed() -> None:
    values = np.arange(1000) < 300
    np.testing.assert_allclose(bootstrap_interval(values, seed=4), wilson_interval(300, 1000), atol=0.003)
    lengths = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(lengths, seed=4) == bootstrap_interval(lengths, seed=4)
    assert bootstrap_interval(lengths, seed=4) != bootstrap_interval(lengths, seed=5)


def test_bootstrap_in_chunks_keeps_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=300)
    whole = bootstrap_interval(values, num_resamples=1001)
    monkeypatch.setattr("vfm.statistics.intervals.MAX_DRAWS", 300 * 7)
    np.testing.assert_allclose(bootstrap_interval(values, num_resamples=1001), whole)


def test_interval_covers_the_truth_about_95_times_of_100() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        chance = generator.beta(3, 3, size=80)  # true mean 0.5
        hits = generator.random((80, 5)) < chance[:, None]
        low, high = bootstrap_interval(hits.ravel(), np.repeat(np.arange(80), 5), num_resamples=500, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 300 <= 0.985


@pytest.mark.parametrize("agreement", [0.3, 1.0, 10.0])  # small: the captions of an image are right or wrong together
def test_recall_of_grouped_captions_covers_the_truth_at_few_hits(agreement: float) -> None:
    """Ten or thirty of 1,000 captions are right, or twenty wrong. A bootstrap of whole images covers 0.88 to 0.90."""
    generator, images = np.random.default_rng(0), np.repeat(np.arange(200), 5)
    covered = []
    for share in (0.01, 0.03, 0.98):
        chances = generator.beta(agreement * share, agreement * (1 - share), size=(200, 200))
        hits = generator.random((200, 1000)) < np.repeat(chances, 5, axis=1)
        intervals = [Accuracy("recall@1", row, images).interval() for row in hits]
        covered.append(np.mean([low <= share <= high for low, high in intervals]))
    assert min(covered) >= 0.92
    assert 0.94 <= np.mean(covered) <= 0.99


def test_t_interval_equals_scipy_and_the_table() -> None:
    values = [17.8, 24.2, 21.0]
    low, high = t_interval(values)
    expected = stats.t.interval(0.95, df=2, loc=np.mean(values), scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected)
    assert (high - low) / 2 == pytest.approx(4.3027 * stats.sem(values), rel=1e-4)  # t table, 2 degrees of freedom


def test_t_interval_refuses_one_seed() -> None:
    with pytest.raises(ValueError, match="two or more seeds"):
        t_interval([1.0])


def test_mean_per_class_of_one_class_is_wilsons_interval() -> None:
    assert mean_per_class_interval([1, 1, 0, 1], [4, 4, 4, 4]) == pytest.approx(wilson_interval(3, 4))


def test_mean_per_class_weighs_a_small_class_like_a_large_one() -> None:
    labels = np.repeat([0, 1], [1000, 10])
    correct = np.concatenate([np.ones(1000, bool), np.arange(10) < 5])
    found = to_metric(Accuracy("mean_per_class_recall", correct, classes=labels))
    low, high = wilson_interval(5, 10)
    assert found.value == pytest.approx(0.75)
    assert found.high - found.low == pytest.approx((high - low) / 2, rel=0.25)  # of all items alike: a fifth


def test_mean_per_class_interval_covers_the_truth_with_few_images_per_class() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 4)
    chances = generator.beta(0.4, 0.4, size=20)  # most classes nearly always right or wrong
    intervals = [mean_per_class_interval(generator.random(80) < chances[labels], labels) for _ in range(500)]
    covered = np.mean([low <= chances.mean() <= high for low, high in intervals])
    assert covered >= 0.94


@pytest.mark.parametrize("images", [1, 2])
def test_mean_per_class_interval_covers_the_truth_with_one_or_two_images_per_class(images: int) -> None:
    """All classes are half right, where the spread within a class is least informative: MOVER covers 75 to 80 %."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), images)
    intervals = [mean_per_class_interval(generator.random(40 * images) < 0.5, labels) for _ in range(400)]
    assert np.mean([low <= 0.5 <= high for low, high in intervals]) >= 0.92


def test_effective_size_is_n_for_independent_items_and_the_images_where_captions_agree() -> None:
    hits = np.random.default_rng(0).integers(0, 2, size=200)
    assert effective_size(hits) == pytest.approx(200)
    assert effective_size(hits, np.arange(200)) == pytest.approx(200)
    assert effective_size(np.repeat(hits, 5), np.repeat(np.arange(200), 5)) == pytest.approx(200)
    assert effective_size(np.ones(1000), np.repeat(np.arange(200), 5)) == pytest.approx(200)
    # A model without sight gets one question of every pair right: the pairs' sums have no spread.
    assert effective_size(np.tile([0, 1], 200), np.repeat(np.arange(200), 2)) == pytest.approx(200)


def test_effective_size_is_the_spread_of_one_item_over_that_of_the_mean() -> None:
    """Ten classes of 40: half always right, half never. The mean of the classes then hardly varies, but in free
    draws it would, like that of 400 items."""
    generator = np.random.default_rng(0)
    chances, labels = np.repeat([0.9, 0.1], 5), np.repeat(np.arange(10), 40)
    sizes = [effective_size(generator.random(400) < chances[labels], strata=labels) for _ in range(200)]
    assert np.mean(sizes) == pytest.approx(0.25 / (0.09 / 400), rel=0.1)


def test_perfect_score_on_few_images_has_a_wide_interval() -> None:
    images = np.repeat(np.arange(10), 5)
    found = to_metric(Accuracy("image_retrieval_recall@10", np.ones(50, bool), images), model="clip")
    assert (found.value, found.high, found.n, found.model) == (1, 1, 10, "clip")
    assert found.low == wilson_interval(10, 10)[0]


def test_interval_of_equal_groups_claims_no_certainty() -> None:
    # A model without sight answers one of the two questions of every pair rightly.
    found = to_metric(Accuracy("accuracy", np.tile([True, False], 40), np.repeat(np.arange(40), 2)))
    assert (found.value, found.n) == (0.5, 40)
    assert (found.low, found.high) == pytest.approx(wilson_interval(20, 40))


def test_accuracy_uses_wilson_for_items_and_the_grouped_interval_for_captions() -> None:
    hits = np.arange(100) % 3 == 0
    alone = to_metric(Accuracy("acc1", hits, chance=0.1))
    assert (alone.low, alone.high) == wilson_interval(34, 100)
    assert alone == to_metric(Accuracy("acc1", hits, np.arange(100), chance=0.1))
    shared = to_metric(Accuracy("acc1", hits, np.arange(100) // 5))
    assert (shared.low, shared.high) == grouped_interval(hits, np.arange(100) // 5)
    assert (shared.low, shared.high) == pytest.approx(bootstrap_interval(hits, np.arange(100) // 5), abs=0.08)
    assert (alone.n, shared.n) == (100, 20)
