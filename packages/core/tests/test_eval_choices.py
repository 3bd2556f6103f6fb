"""MMVP-VLM by the official rule, and general caption choice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from vfm.data.choices.benchmarks import MMVP_PATTERNS, mmvp_patterns
from vfm.eval.choices.choice_rules import choose, mmvp_vlm

IDS = np.arange(1, 271).reshape(135, 2)
TRUTH = np.where(IDS % 2 == 1, 0, 1)
FINITE = st.floats(-40, 40, width=32) | st.sampled_from([0.0, 25.0])


def official(logits: np.ndarray, question_ids: np.ndarray) -> tuple[list[bool], dict[str, float]]:
    """Return the results of the authors' script, restated line by line for given logits."""
    pair_accuracies = dict.fromkeys(MMVP_PATTERNS, 0.0)
    num_pairs, right = 0, []
    for (text1, text2), (qid1, qid2) in zip(torch.from_numpy(logits), question_ids, strict=True):
        probs1, probs2 = text1[None].softmax(dim=-1).numpy(), text2[None].softmax(dim=-1).numpy()
        pred1 = "img1" if probs1[0][0] > 0.5 else "img2"
        pred2 = "img1" if probs2[0][0] > 0.5 else "img2"
        gt1 = "img1" if qid1 % 2 == 1 else "img2"
        gt2 = "img1" if qid2 % 2 == 1 else "img2"
        right.append(pred1 == gt1 and pred2 == gt2)
        if right[-1]:
            pair_accuracies[MMVP_PATTERNS[num_pairs // 15]] += 1
        num_pairs += 1
    return right, {c: n / (num_pairs // len(MMVP_PATTERNS)) * 100 for c, n in pair_accuracies.items()}


@given(logits=hnp.arrays(np.float32, (135, 2, 2), elements=FINITE), swap=hnp.arrays(np.bool_, 135))
@settings(max_examples=50)
def test_pairs_are_scored_as_by_the_authors_script(logits: np.ndarray, swap: np.ndarray) -> None:
    ids = np.where(swap[:, None], IDS[:, ::-1], IDS)  # the file may list the even id first
    result = mmvp_vlm(logits, np.where(ids % 2 == 1, 0, 1))
    right, by_pattern = official(logits, ids)
    assert result.correct.tolist() == right
    patterns = np.array(mmvp_patterns(135))
    for pattern, accuracy in by_pattern.items():
        assert 100 * result.correct[patterns == pattern].mean() == pytest.approx(accuracy)
    # Nine patterns of 15: the mean over patterns, which DIVA prints, is the pair accuracy.
    assert 100 * result.correct.mean() == pytest.approx(np.mean(list(by_pattern.values())))


def test_a_perfect_model_gets_every_pair_and_an_inverted_one_none() -> None:
    perfect = np.tile(np.eye(2, dtype=np.float32) * 20, (135, 1, 1))
    assert mmvp_vlm(perfect, TRUTH).correct.all()
    assert not mmvp_vlm(-perfect, TRUTH).correct.any()


def test_guessing_gets_a_quarter_of_the_pairs() -> None:
    logits = np.random.default_rng(0).normal(size=(40_000, 2, 2)).astype(np.float32)
    assert mmvp_vlm(logits, np.tile([0, 1], (40_000, 1))).correct.mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("image", [0, 1])
def test_a_constant_answer_gets_no_pair(image: int) -> None:
    logits = np.zeros((135, 2, 2), np.float32)
    logits[:, :, image] = 5
    assert not mmvp_vlm(logits, TRUTH).correct.any()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_ties_and_nan_go_to_the_second_image(value: float) -> None:
    result = mmvp_vlm(np.full((135, 2, 2), value, np.float32), TRUTH)
    assert (result.prediction == 1).all()
    assert not result.correct.any()


def test_one_right_statement_of_two_does_not_count_as_a_pair() -> None:
    half = np.array([[[9, 0], [9, 0]]], np.float32)  # both statements to image 1
    result = mmvp_vlm(half, TRUTH[:1])
    assert result.right.tolist() == [[True, False]]
    assert result.correct.tolist() == [False]


@given(
    hnp.arrays(np.float32, (7, 2, 8), elements=st.floats(-1, 1, width=16)),
    hnp.arrays(np.float32, (7, 2, 8), elements=st.floats(-1, 1, width=16)),
)
def test_aligned_is_the_sign_of_the_product_of_differences(images: np.ndarray, texts: np.ndarray) -> None:
    logits = np.einsum("psd,pid->psi", texts.astype(np.float64), images.astype(np.float64))
    expected = ((texts[:, 0] - texts[:, 1]) * (images[:, 0] - images[:, 1])).astype(np.float64).sum(axis=1)
    sure = np.abs(expected) > 1e-3
    result = mmvp_vlm(logits.astype(np.float32), TRUTH[:7])
    assert np.array_equal(result.aligned[sure], (expected > 0)[sure])
    assert (result.aligned | ~result.correct).all()


def test_patterns_are_assigned_by_position_in_the_official_set_only() -> None:
    patterns = mmvp_patterns(135)
    assert [patterns.count(p) for p in MMVP_PATTERNS] == [15] * 9
    assert (patterns[14], patterns[15]) == MMVP_PATTERNS[:2]
    with pytest.raises(ValueError, match="135 pairs, got 90"):
        mmvp_patterns(90)


def test_mmvp_refuses_items_that_are_not_pairs() -> None:
    with pytest.raises(ValueError, match="MMVP pairs"):
        mmvp_vlm(np.zeros((3, 2, 1), np.float32), TRUTH[:3])


def naive_choice(scores: np.ndarray, right: np.ndarray) -> tuple[bool, bool]:
    """Apply Winoground's definition in loops: every right statement must beat its rivals."""

    def wins(scores: np.ndarray, right: np.ndarray) -> bool:
        rivals = [r for r in range(len(right)) if not right[r]]
        return any(right[j] and all(scores[j] > scores[r] for r in rivals) for j in range(len(right)))

    return (
        all(wins(scores[:, i], right[:, i]) for i in range(scores.shape[1])),
        all(wins(scores[s], right[s]) for s in range(scores.shape[0])),
    )


@given(scores=hnp.arrays(np.float64, (6, 2, 2), elements=st.integers(-3, 3).map(float) | st.just(np.nan)))
@settings(max_examples=80)
def test_choice_equals_winogrounds_definition(scores: np.ndarray) -> None:
    result = choose(scores, np.eye(2, dtype=bool))
    for p in range(6):
        assert (result.text[p], result.image[p]) == naive_choice(scores[p], np.eye(2, dtype=bool))
    assert (result.group == (result.text & result.image)).all()


def test_choice_for_one_image_is_sugarcrepes_rule_with_a_strict_win() -> None:
    scores = np.array([[[0.3], [0.2]], [[0.2], [0.3]], [[0.2], [0.2]], [[np.nan], [0.1]]])
    result = choose(scores, np.array([[True], [False]]))
    assert result.group.tolist() == [True, False, False, False]


def test_any_of_several_right_statements_may_win() -> None:
    right = np.array([[True], [True], [False]])
    scores = np.array([[[0.1], [0.9], [0.5]], [[0.1], [0.2], [0.5]]])
    assert choose(scores, right).text.tolist() == [True, False]
