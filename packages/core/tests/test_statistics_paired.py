"""Paired tests and the interval of the gain: printed values, brute force, and error rates in simulations."""

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from scipy import stats

from vfm.statistics import Accuracy, compare, stratified_mean
from vfm.statistics.paired import mcnemar_exact, newcombe_interval, paired_t, sign_flip_p


def test_mcnemar_equals_the_values_printed_for_diva() -> None:
    """26 -> 35 of 135 pairs: p is between 0.004 (9 wins, no loss) and 0.12 (18 to 9)."""
    clean = mcnemar_exact([0] * 9 + [1] * 26, [1] * 9 + [1] * 26)
    mixed = mcnemar_exact([0] * 18 + [1] * 9, [1] * 18 + [0] * 9)
    assert (clean.wins, clean.losses, clean.p_value) == (9, 0, pytest.approx(0.00390625))
    assert (mixed.wins, mixed.losses) == (18, 9)
    assert mixed.p_value == pytest.approx(0.1221, abs=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
@settings(max_examples=60)
def test_mcnemar_equals_scipys_sign_test_in_both_orders(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs).T
    forward, backward = mcnemar_exact(first, second), mcnemar_exact(second, first)
    discordant = forward.wins + forward.losses
    expected = stats.binomtest(forward.wins, discordant).pvalue if discordant else 1.0
    assert forward.p_value == pytest.approx(expected) == backward.p_value
    assert (forward.wins, forward.losses) == (backward.losses, backward.wins)


def cells(both: int, first: int, second: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    """Return right or wrong of two models from the counts of the outcomes."""
    counts = [both, first, second, none]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((0, 30, 0, 0), 0.8395, 1.0),
    ],
)
def test_newcombes_interval_equals_his_printed_values(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    first, second = cells(*table)
    assert newcombe_interval(second, first) == pytest.approx((low, high), abs=1e-4)
    assert newcombe_interval(first, second) == pytest.approx((-high, -low), abs=1e-4)


@pytest.mark.parametrize("right", [20, 10, 0])
def test_agreement_on_few_items_does_not_prove_equality(right: int) -> None:
    hits = np.arange(20) < right
    low, high = newcombe_interval(hits, hits)
    assert low == -high
    assert 0.05 < high < 0.2
    images = np.repeat(np.arange(20), 5)
    assert newcombe_interval(hits[images], hits[images], images) == pytest.approx((low, high))


def naive_flips(first: np.ndarray, second: np.ndarray, strata: np.ndarray) -> float:
    """Apply the definition of the sign-flip test, item by item."""
    difference = second.astype(float) - first
    seen = abs(stratified_mean(difference, strata))
    signs = np.array(list(product([-1, 1], repeat=len(difference))))
    return float(np.mean([abs(stratified_mean(row * difference, strata)) >= seen - 1e-12 for row in signs]))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=9))
@example(
    [*[(False, False, 0)] * 5, (False, True, 0), (True, False, 1), (False, True, 1), (True, False, 0)]
)  # a sum of 0
@settings(max_examples=40)
def test_sign_flips_equal_their_definition_and_mcnemar_without_classes(items: list[tuple[bool, bool, int]]) -> None:
    first, second, strata = (np.array(column) for column in zip(*items, strict=True))
    assert sign_flip_p(first, second, strata=strata) == pytest.approx(naive_flips(first, second, strata))
    assert sign_flip_p(first, second) == pytest.approx(mcnemar_exact(first, second).p_value)


def test_drawn_flips_equal_enumerated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], [10, 30, 60])
    first = generator.random(100) < 0.4
    second = first ^ (generator.random(100) < 0.3)
    counted = sign_flip_p(first, second, strata=classes)
    monkeypatch.setattr("vfm.statistics.paired.MAX_OUTCOMES", 1)
    drawn = sign_flip_p(first, second, strata=classes, num_draws=40_000)
    assert 0.05 < counted < 0.9
    assert drawn == pytest.approx(counted, abs=0.01)
    assert drawn == sign_flip_p(first, second, strata=classes, num_draws=40_000)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=9))
def test_seeds_are_compared_by_students_paired_test(seeds: list[tuple[float, float]]) -> None:
    first, second = np.array(seeds).T
    (low, high), p_value = paired_t(first, second)
    if (second - first).std() > 1e-6:
        expected = stats.ttest_rel(second, first)
        assert p_value == pytest.approx(expected.pvalue)
        assert (low, high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert (low > 0 or high < 0) == (p_value < 0.05)


def test_equal_gains_of_all_seeds_have_the_p_of_sign_flips() -> None:
    assert paired_t([0.5, 0.25], [0.75, 0.5]) == ((0.0, 0.25), 0.5)
    assert paired_t([0.037, 0.027, 0.045], [0.0395, 0.0295, 0.0475])[1] == 0.25
    assert paired_t([0.5, 0.25], [0.5, 0.25]) == ((0.0, 0.0), 1.0)


def test_paired_tests_refuse_unequal_lists() -> None:
    for test in (mcnemar_exact, sign_flip_p, newcombe_interval):
        with pytest.raises(ValueError, match="same items"):
            test([1, 0], [1])


def test_one_flipped_item_of_ten_classes_with_one_image_is_not_significant() -> None:
    """A bootstrap within the classes sees no spread: it would report 0.1 to 0.1 and p = 0.0002."""
    before, classes = np.zeros(10, bool), np.arange(10)
    after = classes == 3
    found = compare(
        Accuracy("m", before, classes=classes), Accuracy("m", after, classes=classes), baseline="a", model="b"
    )
    assert (found.difference, found.p_value, found.test) == (pytest.approx(0.1), 1.0, "sign flips")
    assert found.low < 0 < 0.1 < found.high


CALIBRATION = {
    "1 image per class": ([1] * 40, None),
    "2 images per class": ([2] * 20, None),
    "from 1 to 50 images per class": ([1, 1, 1, 2, 3, 5, 10, 20, 50], None),
    "items": ([60], None),
    "5 captions per image": ([150], 5),
}


@pytest.mark.parametrize("gain", [0.0, 0.15])
@pytest.mark.parametrize("shape", CALIBRATION)
def test_interval_covers_the_difference_and_false_positives_are_rare(shape: str, gain: float) -> None:
    """At a nominal 5 %; a bootstrap within classes finds a difference in 85 % with one image per class."""
    sizes, captions = CALIBRATION[shape]
    classes = np.repeat(np.arange(len(sizes)), sizes)
    groups = None if captions is None else np.arange(len(classes)) // captions
    generator = np.random.default_rng(1)
    strata, covered, claimed, trials = classes if len(sizes) > 1 else None, 0, 0, 400
    for trial in range(trials):
        ease = generator.random(len(classes) if groups is None else groups[-1] + 1)
        ease = ease if groups is None else ease[groups]  # an image's captions are easy or hard together
        luck = generator.random((2, len(classes))) < 0.4  # otherwise both models agree
        first = np.where(luck[0], generator.random(len(classes)), ease) < 0.5
        second = np.where(luck[1], generator.random(len(classes)), ease) < 0.5 + gain
        low, high = newcombe_interval(first, second, groups, strata=strata)
        covered += low <= gain <= high
        claimed += sign_flip_p(first, second, groups, strata=strata, num_draws=500, seed=trial) < 0.05
    assert covered / trials > 0.92
    assert claimed / trials < 0.08 if gain == 0 else claimed / trials > 0.08  # and a true gain is found more often


def test_captions_of_one_image_are_not_counted_as_independent_evidence() -> None:
    """Two images flip, five captions each: McNemar would see ten independent wins (p = 0.002)."""
    images = np.repeat(np.arange(40), 5)
    before, after = np.zeros(200, bool), images < 2
    items = compare(Accuracy("r", before), Accuracy("r", after), baseline="clip", model="diva")
    grouped = compare(Accuracy("r", before, images), Accuracy("r", after, images), baseline="clip", model="diva")
    assert (items.test, grouped.test) == ("exact McNemar", "sign flips")
    assert items.p_value < 0.01 < 0.1 < grouped.p_value
    assert items.difference == grouped.difference == pytest.approx(0.05)
    assert (items.model, items.baseline) == ("diva", "clip")


def test_comparison_of_class_means_weighs_classes_not_items() -> None:
    labels = np.repeat([0, 1], [90, 10])
    before, after = np.zeros(100, bool), labels == 1
    found = compare(
        Accuracy("m", before, classes=labels), Accuracy("m", after, classes=labels), baseline="a", model="b"
    )
    assert found.difference == pytest.approx(0.5)
    assert found.low < 0.5 < found.high
    assert found.p_value == pytest.approx(2 / 2**10)


def test_comparing_different_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match="acc1 and acc5"):
        compare(Accuracy("acc1", np.ones(2, bool)), Accuracy("acc5", np.ones(2, bool)), baseline="a", model="b")
