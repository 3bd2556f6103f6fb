"""Balancing: the paper's probabilities, the closed form, the draw, and the search for t."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from vfm.data import drawn, text_keys
from vfm.plugin import UserError
from vfm_curation.balance.thresholds import EntryLanguages, by_reference
from vfm_curation.counts import probabilities

counts_arrays = hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 10**12))


def ragged(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, lists)])
    return np.array([i for ids in lists for i in ids], dtype=np.int32), offsets


def keys_of(num_texts: int) -> np.ndarray:
    uids, languages = pa.array(map(str, range(num_texts))), pa.array(["en"] * num_texts)
    return text_keys(uids, languages, pa.array(np.zeros(num_texts, np.int32)))


def random_pool(num_texts: int, num_entries: int, seed: int = 0) -> list[list[int]]:
    """Return texts with 1 to 6 entries each, drawn by Zipf's law: a long tail."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, num_entries + 1)
    sizes = rng.integers(1, 7, num_texts)
    return [sorted(rng.choice(num_entries, size, replace=False, p=weights / weights.sum())) for size in sizes]


@given(counts_arrays, st.floats(1e-6, 1e15))
def test_probabilities_are_never_nan_nor_outside_0_1(counts: np.ndarray, t: float) -> None:
    probability = probabilities.keep_probability(counts, t)
    assert ((probability > 0) & (probability <= 1)).all()
    expected = [1.0 if count <= t else t / count for count in counts.tolist()]
    np.testing.assert_allclose(probability, expected, rtol=1e-12)


def test_counts_beyond_32_bits_keep_their_probability() -> None:
    assert probabilities.keep_probability(np.array([2**40]), 2**10).item() == 2.0**-30


@pytest.mark.parametrize("t", [0, -1, float("nan")])
def test_t_must_be_positive(t: float) -> None:
    with pytest.raises(UserError, match="t must be positive"):
        probabilities.keep_probability(np.array([1]), t)


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=6), max_size=12))
def test_closed_form_equals_the_product_over_entries_also_for_texts_without_any(lists: list[list[int]]) -> None:
    entry_probability = np.linspace(0.05, 1.0, 10)
    ids, offsets = ragged(lists)
    plain = [1 - np.prod([1 - entry_probability[i] for i in ids]) for ids in lists]
    np.testing.assert_allclose(probabilities.text_probability(ids, offsets, entry_probability), plain, atol=1e-12)


def test_closed_form_equals_numpys_products_bit_for_bit_for_one_choice_and_for_several() -> None:
    ids, offsets = ragged(random_pool(3000, 50))
    choices = np.random.default_rng(0).random((50, 3))
    plain = np.stack([1 - np.multiply.reduceat(1 - one[ids], offsets[:-1]) for one in choices.T], axis=1)
    assert (probabilities.text_probability(ids, offsets, choices) == plain).all()
    for choice, one in enumerate(choices.T):
        assert (probabilities.text_probability(ids.astype(np.int64), offsets, one) == plain[:, choice]).all()


def test_each_texts_weights_go_to_its_entries() -> None:
    ids, offsets = ragged(random_pool(500, 20))
    weights = np.random.default_rng(1).random((500, 2))
    totals = np.ones((20, 2))
    probabilities.add_to_entries(totals, ids, offsets, weights)
    for choice in range(2):
        expected = 1 + np.bincount(ids, np.repeat(weights[:, choice], np.diff(offsets)), minlength=20)
        np.testing.assert_allclose(totals[:, choice], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("ids", "offsets", "message"),
    [
        ([0, 5], [0, 2], "entry ids from 0 to 5, of 5 entries"),
        ([-1, 4], [0, 2], "entry ids from -1 to 4, of 5"),
        ([0, 1], [0, 3], "offsets from 0 to 3 into 2 entry ids"),
        ([0, 1], [-1, 2], "offsets from -1 to 2"),
    ],
)
def test_ids_and_offsets_out_of_range_are_rejected(ids: list[int], offsets: list[int], message: str) -> None:
    lists = np.array(ids), np.array(offsets)
    with pytest.raises(UserError, match=message):
        probabilities.text_probability(*lists, np.ones(5))
    with pytest.raises(UserError, match=message):
        probabilities.add_to_entries(np.zeros((5, 1)), *lists, np.ones((1, 1)))


def test_closed_form_agrees_with_the_papers_loop_of_draws() -> None:
    """Compare with Algorithm 1, which draws for every entry of a text and keeps it at the first success."""
    pool = random_pool(4000, 50)
    ids, offsets = ragged(pool)
    entry_probability = probabilities.keep_probability(probabilities.count_ids([ids], 50), 40)
    chance = probabilities.text_probability(ids, offsets, entry_probability)
    rng = np.random.default_rng(1)
    loop_kept = sum(any(rng.random() < entry_probability[i] for i in ids) for ids in pool)
    assert abs(loop_kept - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())
    assert chance.sum() < sum(min(entry_probability[ids].sum(), 1.0) for ids in pool)  # no estimate, a bound


def test_realised_size_is_the_expected_one_within_four_sigma_for_many_seeds() -> None:
    chance = np.random.default_rng(0).random(20_000)
    sizes = [drawn(keys_of(20_000), chance, seed).sum() for seed in range(50)]
    sigma = np.sqrt((chance * (1 - chance)).sum())
    assert max(abs(size - chance.sum()) for size in sizes) < 4 * sigma
    assert 0.6 * sigma < np.std(sizes) < 1.5 * sigma  # seeds are independent draws, not copies


def test_head_entries_keep_t_texts_on_average_and_tail_entries_all() -> None:
    lists = [[0]] * 9000 + [[1]] * 40
    ids, offsets = ragged(lists)
    keys = keys_of(len(lists))
    chance = probabilities.text_probability(
        ids, offsets, probabilities.keep_probability(probabilities.count_ids([ids], 2), 100)
    )
    kept = [probabilities.count_ids([ids[drawn(keys, chance, seed)]], 2) for seed in range(30)]
    head, tail = np.array(kept).T
    assert (tail == 40).all()
    assert abs(head.mean() - 100) < 4 * 10 / np.sqrt(30)


@pytest.mark.parametrize("target", [1, 60, 500, 1999, 2000])
def test_t_for_target_size_gives_the_target_as_expected_size(target: int) -> None:
    ids, offsets = ragged(random_pool(2000, 60))
    counts = probabilities.count_ids([ids], 60)

    def expected_size(t: float) -> float:
        return float(probabilities.text_probability(ids, offsets, probabilities.keep_probability(counts, t)).sum())

    evaluations = []
    t = probabilities.t_for_target_size(lambda t: evaluations.append(t) or expected_size(t), target, counts)
    assert abs(expected_size(t) - target) <= 0.5
    assert len(evaluations) <= 12  # each is a pass over the matches


def test_all_matched_texts_may_be_the_target_where_languages_follow_a_reference() -> None:
    languages, counts = EntryLanguages(["en", "de"], np.array([0, 1, 1])), np.array([1000, 10, 500])

    def expected_size(t: float) -> float:  # one text for each entry
        of_entries = languages.t_of_entries(by_reference(languages, counts, t, "en"))
        return float((counts * probabilities.keep_probability(counts, of_entries)).sum())

    for target in (1400, 1510):
        assert expected_size(probabilities.t_for_target_size(expected_size, target, counts)) >= target - 0.5


def test_a_target_beyond_the_matched_texts_is_rejected_with_their_number() -> None:
    with pytest.raises(UserError, match="target_size 11 is not possible: 10 texts matched"):
        probabilities.t_for_target_size(lambda t: min(t, 10.0), 11, np.array([100]))


def test_a_size_that_jumps_over_the_target_gives_the_t_above_the_jump() -> None:
    counts = np.array([1000])
    t = probabilities.t_for_target_size(lambda t: 100.0 + t if t < 77 else 900.0, 500, counts)
    assert t == pytest.approx(77, rel=1e-6)
    with pytest.raises(UserError, match="target_size 50 is not possible: no t keeps fewer than 10"):
        probabilities.t_for_target_size(lambda t: 100.0 + t, 50, counts)


@pytest.mark.parametrize("t", [20, 100, 500])
def test_tail_share_and_t_are_inverse_up_to_one_step(t: int) -> None:
    counts = np.arange(1, 2000)
    assert probabilities.t_for_tail_share(counts, probabilities.tail_share(counts, t)) == t - 1


@given(counts_arrays.filter(lambda counts: counts.any()), st.floats(0, 1))
def test_t_is_never_zero_even_with_one_dominant_entry(counts: np.ndarray, share: float) -> None:
    assert probabilities.t_for_tail_share(counts, share) >= 1


def test_language_with_one_dominant_entry_is_kept_whole() -> None:
    counts = np.array([0, 0, 0, 100])
    assert probabilities.keep_probability(counts, probabilities.t_for_tail_share(counts, 0.06)).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("counts", "share", "t"),
    [([0, 0, 0, 100], 0.06, 1), ([1, 2, 3, 4, 90], 0.06, 3), ([4, 90, 2, 3, 1], 0.06, 3), ([5, 5, 5, 5], 0.5, 5),
     ([1, 1, 1, 1, 1000], 0.9, 1000)],
)  # fmt: skip
def test_nearest_t_is_the_count_of_an_entry(counts: list[int], share: float, t: float) -> None:
    assert probabilities.nearest_t_for_tail_share(np.array(counts), share) == t


def test_no_match_at_all_has_no_t() -> None:
    for rule in (probabilities.t_for_tail_share, probabilities.nearest_t_for_tail_share):
        with pytest.raises(UserError, match="no entry has a match"):
            rule(np.zeros(3, dtype=np.int64), 0.06)
    assert probabilities.tail_share(np.zeros(3, dtype=np.int64), 5) == 0
    assert probabilities.cumulative_share(np.zeros(3, dtype=np.int64)).tolist() == [0, 0, 0]


def test_t_between_two_counts_far_apart_is_interpolated() -> None:
    counts = np.array([100_000, 1, 1, 1])
    t = probabilities.t_for_tail_share(counts, 0.06)
    assert t == pytest.approx(6000, rel=0.01)
    assert (counts * probabilities.keep_probability(counts, t)).sum() > 5000
