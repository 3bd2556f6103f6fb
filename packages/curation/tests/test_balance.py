"""Balancing: the paper's probabilities, the closed form, the draw, and the search for t."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vfm.config import UserError
from vfm_curation import balance

counts_arrays = hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 10**12))


def ragged(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, lists)])
    return np.array([i for ids in lists for i in ids], dtype=np.int32), offsets


def random_pool(num_texts: int, num_entries: int, seed: int = 0) -> list[list[int]]:
    """Texts with 1 to 6 entries each, drawn by Zipf's law: a long tail."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, num_entries + 1)
    sizes = rng.integers(1, 7, num_texts)
    return [sorted(rng.choice(num_entries, size, replace=False, p=weights / weights.sum())) for size in sizes]


@given(counts_arrays, st.floats(1e-6, 1e15))
def test_probabilities_are_never_nan_nor_outside_0_1(counts: np.ndarray, t: float) -> None:
    probability = balance.keep_probability(counts, t)
    assert ((probability > 0) & (probability <= 1)).all()
    expected = [1.0 if count <= t else t / count for count in counts.tolist()]
    np.testing.assert_allclose(probability, expected, rtol=1e-12)


def test_counts_beyond_32_bits_keep_their_probability() -> None:
    assert balance.keep_probability(np.array([2**40]), 2**10).item() == 2.0**-30


@pytest.mark.parametrize("t", [0, -1, float("nan")])
def test_t_that_is_not_positive_is_refused(t: float) -> None:
    with pytest.raises(UserError, match="t must be positive"):
        balance.keep_probability(np.array([1]), t)


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=6), max_size=12))
def test_closed_form_equals_the_product_over_entries_also_for_texts_without_any(lists: list[list[int]]) -> None:
    entry_probability = np.linspace(0.05, 1.0, 10)
    ids, offsets = ragged(lists)
    plain = [1 - np.prod([1 - entry_probability[i] for i in ids]) for ids in lists]
    np.testing.assert_allclose(balance.text_probability(ids, offsets, entry_probability), plain, atol=1e-12)


def test_closed_form_agrees_with_the_papers_loop_of_draws() -> None:
    """Algorithm 1 draws for every entry of a text and keeps it at the first success; same mean within 4 sigma."""
    pool = random_pool(4000, 50)
    ids, offsets = ragged(pool)
    entry_probability = balance.keep_probability(balance.count_ids([ids], 50), 40)
    chance = balance.text_probability(ids, offsets, entry_probability)
    rng = np.random.default_rng(1)
    loop_kept = sum(any(rng.random() < entry_probability[i] for i in ids) for ids in pool)
    assert abs(loop_kept - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())
    assert chance.sum() < sum(min(entry_probability[ids].sum(), 1.0) for ids in pool)  # the demo's bound is no estimate


def test_realised_size_is_the_expected_one_within_four_sigma_for_many_seeds() -> None:
    chance = np.random.default_rng(0).random(20_000)
    keys = np.array([balance.text_key(str(i), "en", 0) for i in range(20_000)], dtype=np.uint64)
    sizes = [balance.kept(chance, keys, seed).sum() for seed in range(50)]
    sigma = np.sqrt((chance * (1 - chance)).sum())
    assert max(abs(size - chance.sum()) for size in sizes) < 4 * sigma
    assert 0.6 * sigma < np.std(sizes) < 1.5 * sigma  # seeds are independent draws, not copies


def test_head_entries_keep_t_texts_on_average_and_tail_entries_all() -> None:
    lists = [[0]] * 9000 + [[1]] * 40
    ids, offsets = ragged(lists)
    keys = np.array([balance.text_key(str(i), "en", 0) for i in range(len(lists))], dtype=np.uint64)
    chance = balance.text_probability(ids, offsets, balance.keep_probability(balance.count_ids([ids], 2), 100))
    kept = [balance.count_ids([ids[balance.kept(chance, keys, seed)]], 2) for seed in range(30)]
    head, tail = np.array(kept).T
    assert (tail == 40).all()
    assert abs(head.mean() - 100) < 4 * 10 / np.sqrt(30)


def test_the_draw_is_uniform_and_known_forever() -> None:
    keys = np.array([balance.text_key(f"sample{i}", "en", 0) for i in range(50_000)], dtype=np.uint64)
    draws = balance.uniform(keys, seed=0)
    histogram = np.histogram(draws, bins=50, range=(0, 1))[0]
    assert ((histogram - 1000) ** 2 / 1000).sum() < 110  # chi-square, 49 degrees of freedom, p about 1e-6
    assert balance.text_key("sample0", "en", 0) == 996463939162529336
    assert draws[:2].tolist() == [0.30175431922412865, 0.4342060915504703]


def test_splitmix64_gives_the_published_sequence() -> None:
    state, outputs = np.array([1234567], dtype=np.uint64), []
    for _ in range(3):
        outputs.append(int(balance.splitmix64(state)[0]))
        state = state + np.uint64(0x9E3779B97F4A7C15)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_every_part_of_a_texts_identity_and_the_seed_change_its_draw() -> None:
    names = [("a", "en", 0), ("b", "en", 0), ("a", "de", 0), ("a", "en", 1)]
    keys = np.array([balance.text_key(*name) for name in names], dtype=np.uint64)
    draws = [value for seed in (0, 1, -1, 2**64 - 2) for value in balance.uniform(keys, seed).tolist()]
    assert len(set(draws)) == 16


@pytest.mark.parametrize("target", [1, 60, 500, 1999, 2000])
def test_t_for_target_size_gives_the_target_as_expected_size(target: int) -> None:
    ids, offsets = ragged(random_pool(2000, 60))
    counts = balance.count_ids([ids], 60)

    def expected_size(t: float) -> float:
        return float(balance.text_probability(ids, offsets, balance.keep_probability(counts, t)).sum())

    t = balance.t_for_target_size(expected_size, target, int(counts.max()))
    assert abs(expected_size(t) - target) <= 0.5


def test_a_target_beyond_the_matched_texts_is_refused_with_their_number() -> None:
    with pytest.raises(UserError, match="target_size 11 is not possible: 10 texts matched"):
        balance.t_for_target_size(lambda t: min(t, 10.0), 11, 100)


@pytest.mark.parametrize("t", [20, 100, 500])
def test_tail_share_and_t_are_inverse_up_to_one_step(t: int) -> None:
    counts = np.arange(1, 2000)
    assert balance.t_for_tail_share(counts, balance.tail_share(counts, t)) == t - 1


@given(counts_arrays.filter(lambda counts: counts.any()), st.floats(0, 1))
def test_t_is_never_zero_even_with_one_dominant_entry(counts: np.ndarray, share: float) -> None:
    assert balance.t_for_tail_share(counts, share) >= 1


def test_language_with_one_dominant_entry_is_kept_whole() -> None:
    counts = np.array([0, 0, 0, 100])
    assert balance.keep_probability(counts, balance.t_for_tail_share(counts, 0.06)).tolist() == [1, 1, 1, 1]


def test_no_match_at_all_has_no_t() -> None:
    with pytest.raises(UserError, match="no entry has a match"):
        balance.t_for_tail_share(np.zeros(3, dtype=np.int64), 0.06)
    assert balance.tail_share(np.zeros(3, dtype=np.int64), 5) == 0
    assert balance.cumulative_share(np.zeros(3, dtype=np.int64)).tolist() == [0, 0, 0]
