"""Score answers by MMVP's pair rule, and by POPE's precision, recall and F1. Pure functions of arrays.

Sources: Tong et al. 2024 (arXiv:2401.06209), section 3, and Li et al. 2023, POPE (arXiv:2305.10355), section 4.
"""

# Q questions, P pairs, I images, R resamples

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm.plugin import Score
from vfm.statistics import Accuracy, ResampledScore, image_weights

Booleans = NDArray[np.bool_]
Floats = NDArray[np.float64]


def chosen(likelihoods: Sequence[float], answer: int) -> bool:
    """Check whether the right option is likelier than each other one. With equal likelihoods nothing is chosen."""
    return all(likelihoods[answer] > value for index, value in enumerate(likelihoods) if index != answer)


def pair_scores(
    correct: Booleans, pairs: Sequence[tuple[int, int]], num_options: NDArray[np.int64], families: Sequence[str]
) -> list[Score]:
    """Score the share of pairs with both questions right.

    There is a score of all pairs, and one of each family if there are several.

    Args:
        correct: Whether each question is answered right, (Q,).
        pairs: The two questions of each pair, (P, 2).
        num_options: Number of options of each question, (Q,). Guesses of both questions are independent.
        families: Family of each question, (Q,).
    """
    first, second = np.array(pairs).reshape(-1, 2).T
    right = correct[first] & correct[second]
    chance = 1 / (num_options[first] * num_options[second])
    return _by_family("pair_accuracy", right, chance, [families[question] for question in first])


def question_scores(
    correct: Booleans, images: NDArray[np.int64], num_options: NDArray[np.int64], families: Sequence[str]
) -> list[Score]:
    """Score the share of questions that are answered right.

    There is a score of all questions, and one of each family if there are several.

    Args:
        correct: Whether each question is answered right, (Q,).
        images: Image of each question, (Q,). The questions of an image are not independent.
        num_options: Number of options of each question, (Q,).
        families: Family of each question, (Q,).
    """
    return _by_family("accuracy", correct, 1 / num_options, families, images)


def yes_no_scores(said_yes: Booleans, is_yes: Booleans, images: NDArray[np.int64]) -> list[Score]:
    """Score precision, recall and F1 of "yes", and the share of questions answered by it.

    Intervals and tests resample images, since the questions about an image depend on each other. If no question is
    answered by "yes", precision and F1 are 0.

    Args:
        said_yes: The answers, (Q,).
        is_yes: The right answers, (Q,).
        images: Image of each question, (Q,).
    """
    counts = yes_no_counts(said_yes, is_yes, images)
    share = float(is_yes.mean())
    chances = {"precision": share, "recall": 0.5, "f1": share / (share + 0.5), "yes_share": 0.5}
    scores: list[Score] = []
    for name, rule in YES_NO_RULES.items():
        value = float(rule(counts.sum(axis=0)))
        resampled = partial(resampled_rule, rule, counts)
        scores.append(ResampledScore(name, value, len(counts), resampled, chance=chances[name]))
    return scores


def yes_no_counts(said_yes: Booleans, is_yes: Booleans, images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the answers to yes-no questions, by image.

    Args:
        said_yes: Whether the model said yes, (Q,).
        is_yes: Whether yes is right, (Q,).
        images: Image of each question, (Q,).

    Returns:
        True yes, false yes, false no and true no of each image, (I, 4).
    """
    _, image_indices = np.unique(images, return_inverse=True)
    kinds = np.where(said_yes, np.where(is_yes, 0, 1), np.where(is_yes, 2, 3))
    counts = np.zeros((image_indices.max() + 1, 4), dtype=np.int64)
    np.add.at(counts, (image_indices, kinds), 1)
    return counts


def precision(counts: ArrayLike) -> Floats:
    """Compute true yes / all said yes for counts (..., 4)."""
    true_yes, false_yes, _, _ = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return ratio(true_yes, true_yes + false_yes)


def recall(counts: ArrayLike) -> Floats:
    """Compute true yes / all that are yes for counts (..., 4)."""
    true_yes, _, false_no, _ = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return ratio(true_yes, true_yes + false_no)


def f1(counts: ArrayLike) -> Floats:
    """Compute the harmonic mean of precision and recall for counts (..., 4)."""
    true_yes, false_yes, false_no, _ = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return ratio(2 * true_yes, 2 * true_yes + false_yes + false_no)


def yes_share(counts: ArrayLike) -> Floats:
    """Compute the share of questions answered by yes for counts (..., 4)."""
    array = np.asarray(counts, dtype=np.float64)
    return ratio(array[..., :2].sum(axis=-1), array.sum(axis=-1))


YES_NO_RULES: dict[str, Callable[[ArrayLike], Floats]] = {
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "yes_share": yes_share,
}


def resampled_rule(rule: Callable[[ArrayLike], Floats], counts: NDArray[np.int64], seed: int) -> Floats:
    """Compute a score of counts for resampled images, (R,).

    Args:
        rule: Computes the score from counts (..., K).
        counts: Counts of each image, (I, K).
        seed: Seed of the resamples.
    """
    return rule(image_weights(len(counts), seed=seed) @ counts)


def ratio(part: Floats, whole: Floats) -> Floats:
    """Divide counts, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _by_family(
    metric: str,
    correct: Booleans,
    chance: Floats,
    families: Sequence[str],
    groups: NDArray[np.int64] | None = None,
) -> list[Score]:
    names = list(dict.fromkeys(families))
    parts = [(metric, np.ones(len(correct), dtype=bool))]
    if len(names) > 1:
        for name in names:
            parts.append((f"{metric}/{name}", np.array(families) == name))
    scores: list[Score] = []
    for name, mask in parts:
        groups_of_part = None if groups is None else groups[mask]
        scores.append(Accuracy(name, correct[mask], groups_of_part, chance=float(chance[mask].mean())))
    return scores
