"""Choosing the right statement or picture among near-identical ones: MMVP-VLM by its official rule, and any other.

MMVP-VLM: Tong et al. 2024, Eyes Wide Shut (arXiv:2401.06209), rule read from the authors' `scripts/evaluate_vlm.py`.
The general rule is Winoground's (Thrush et al. 2022, arXiv:2204.03162), which for one image is SugarCrepe's.
"""

# P pairs or items, S statements, I images

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class MmvpResult:
    """Outcome for each pair; images are counted 0 and 1 here.

    probability: that the first image is meant, for both statements, (P, 2).
    prediction: the image each statement was given to, (P, 2).
    right: whether that is its image, (P, 2).
    correct: both statements right, (P,).
    aligned: what tells the statements apart tells the images apart, though one of them may draw both statements, (P,).
    """

    probability: NDArray[np.float32]
    prediction: NDArray[np.int64]
    right: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    aligned: NDArray[np.bool_]


def mmvp_vlm(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> MmvpResult:
    """Judge pairs by the official MMVP-VLM rule: each statement picks one of the pair's two images.

    A statement goes to the first image if softmax over the two images gives it more than one half, else to the second:
    so ties, and NaN, go to the second. A pair counts only if both of its statements are right: guessing scores 25 %,
    always the same answer 0 %. Image to text is not scored.

    Beside the rule stands what it hides, a signal drowned by a preference for one image: `aligned` asks that the right
    logits have a larger sum than the wrong ones, which for embeddings is (e0 - e1).(i0 - i1) > 0; guessing scores 50 %.

    Args:
        logits: of each statement for each image, with the model's own temperature, (P, 2 statements, 2 images).
        truth: the image that each statement belongs to, 0 (an odd question id) or 1 (an even one), (P, 2).
    """
    if logits.shape[1:] != (2, 2) or truth.shape != logits.shape[:2]:
        raise ValueError(f"MMVP pairs are (P, 2, 2) logits and (P, 2) truths, got {logits.shape} and {truth.shape}")
    probability = torch.from_numpy(np.asarray(logits, dtype=np.float32)).softmax(dim=-1)[..., 0].numpy()
    prediction = np.where(probability > 0.5, 0, 1)
    right = prediction == truth
    of_own = np.take_along_axis(np.asarray(logits, dtype=np.float64), truth[..., None], axis=-1)[..., 0]
    aligned = 2 * of_own.sum(axis=1) > logits.sum(axis=(1, 2), dtype=np.float64)
    return MmvpResult(probability, prediction, right, right.all(axis=1), aligned)


@dataclass(frozen=True)
class ChoiceResult:
    """Outcome for each item: `text` finds the statement of an image, `image` the image of a statement, `group` both.

    An item with one image has no image to choose: its `image` outcome is True and says nothing.
    """

    text: NDArray[np.bool_]
    image: NDArray[np.bool_]
    group: NDArray[np.bool_]


def choose(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> ChoiceResult:
    """Judge any caption choice: each image's right statement must beat all wrong ones, and the reverse.

    Strictly: a tie, and a NaN, is wrong, so a model that cannot tell scores nothing.

    Args:
        scores: of each statement for each image, (P, S, I).
        right: which statement belongs to which image, (S, I) for all items or (P, S, I).
    """
    matches = np.broadcast_to(right, scores.shape)
    text = _beats_the_wrong(scores, matches, axis=1)
    image = _beats_the_wrong(scores, matches, axis=2)
    return ChoiceResult(text, image, text & image)


def _beats_the_wrong(scores: NDArray[np.floating], matches: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Whether the best match along `axis` is above every other, for all the rest that have a match, (P,)."""
    best_right = np.where(matches, scores, -np.inf).max(axis=axis)
    best_wrong = np.where(matches, -np.inf, scores).max(axis=axis)
    asked = matches.any(axis=axis)  # SugarCrepe's wrong statement belongs to no image: nothing is asked of it
    won: NDArray[np.bool_] = ((best_right > best_wrong) | ~asked).all(axis=1)
    return won
