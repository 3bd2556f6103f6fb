"""Rules for choosing the right statement or image among near-identical ones: MMVP-VLM's official one, Winoground's.

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
    """Outcome of each pair; images are counted 0 and 1.

    probability: of the first image, for both statements, (P, 2).
    prediction: the image chosen for each statement, (P, 2).
    right: True if that is the statement's image, (P, 2).
    correct: both statements right, (P,).
    aligned: the difference of the statements points along that of the images, even if one image attracts both, (P,).
    """

    probability: NDArray[np.float32]
    prediction: NDArray[np.int64]
    right: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    aligned: NDArray[np.bool_]


def mmvp_vlm(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> MmvpResult:
    """Score pairs by the official MMVP-VLM rule: each statement picks one of the pair's two images.

    A statement picks the first image if softmax over the two images gives it more than one half, else the second: ties
    and NaN pick the second. A pair counts only if both of its statements are right: guessing scores 25 %, a constant
    answer 0 %. Image to text is not scored.

    `aligned` shows a signal that the rule hides where a model prefers one image: the right logits must have a larger
    sum than the wrong ones, which for embeddings is (e0 - e1).(i0 - i1) > 0; guessing scores 50 %.

    Args:
        logits: of each statement for each image, with the model's own temperature, (P, 2 statements, 2 images).
        truth: the image that each statement belongs to, 0 (an odd question id) or 1 (an even one), (P, 2).

    Raises:
        ValueError: the shapes are not those of pairs.
    """
    if logits.shape[1:] != (2, 2) or truth.shape != logits.shape[:2]:
        raise ValueError(
            f"expected MMVP pairs, (P, 2, 2) logits and (P, 2) truth, got {logits.shape} and {truth.shape}"
        )
    probability = torch.from_numpy(np.asarray(logits, dtype=np.float32)).softmax(dim=-1)[..., 0].numpy()
    prediction = np.where(probability > 0.5, 0, 1)
    right = prediction == truth
    of_own = np.take_along_axis(np.asarray(logits, dtype=np.float64), truth[..., None], axis=-1)[..., 0]
    aligned = 2 * of_own.sum(axis=1) > logits.sum(axis=(1, 2), dtype=np.float64)
    return MmvpResult(probability, prediction, right, right.all(axis=1), aligned)


@dataclass(frozen=True)
class ChoiceResult:
    """Outcome of each item, (P,): `text` finds the statement of each image, `image` the reverse, `group` is both.

    An item with one image has no image to choose: its `image` outcome is always True.
    """

    text: NDArray[np.bool_]
    image: NDArray[np.bool_]
    group: NDArray[np.bool_]


def choose(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> ChoiceResult:
    """Score caption choice of any shape: each image's right statement must beat all wrong ones, and the reverse.

    A tie or a NaN is wrong, so a model that cannot distinguish the items scores 0.

    Args:
        scores: of each statement for each image, (P, S, I).
        right: True where statement and image belong together, (S, I) for all items or (P, S, I).
    """
    matches = np.broadcast_to(right, scores.shape)
    text = _beats_the_wrong(scores, matches, axis=1)
    image = _beats_the_wrong(scores, matches, axis=2)
    return ChoiceResult(text, image, text & image)


def _beats_the_wrong(scores: NDArray[np.floating], matches: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Return True where the best match along `axis` beats every non-match, for all rows that have a match, (P,)."""
    best_right = np.where(matches, scores, -np.inf).max(axis=axis)
    best_wrong = np.where(matches, -np.inf, scores).max(axis=axis)
    has_match = matches.any(axis=axis)  # SugarCrepe's wrong statement belongs to no image, so it has no right answer
    won: NDArray[np.bool_] = ((best_right > best_wrong) | ~has_match).all(axis=1)
    return won
