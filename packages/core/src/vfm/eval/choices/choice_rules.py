"""Score caption choice between nearly identical statements or images, by MMVP-VLM's and Winoground's rules.

MMVP-VLM: Tong et al. 2024, Eyes Wide Shut (arXiv:2401.06209), rule read from the authors' `scripts/evaluate_vlm.py`.
The general rule is Winoground's (Thrush et al. 2022, arXiv:2204.03162). For one image it equals SugarCrepe's.
"""

# P pairs or items, S statements, I images

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class MmvpResult:
    """Outcome of each pair. The two images are numbered 0 and 1.

    Attributes:
        probability: Probability of the first image, for both statements, (P, 2).
        prediction: The image chosen for each statement, (P, 2).
        right: True if the chosen image belongs to the statement, (P, 2).
        correct: True if both statements are right, (P,).
        aligned: True if the difference between the statements matches the difference between the images, even if
            both statements choose the same image, (P,).
    """

    probability: NDArray[np.float32]
    prediction: NDArray[np.int64]
    right: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    aligned: NDArray[np.bool_]


def mmvp_vlm(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> MmvpResult:
    """Score pairs by the official MMVP-VLM rule.

    Each statement chooses one of the pair's two images. It chooses the first image if softmax over the two images gives
    it more than one half. Otherwise, including ties and NaN, it chooses the second. A pair counts only if both
    statements are right, so guessing scores 25 % and a constant answer 0 %. The direction from image to text is not
    scored.

    `aligned` reveals a signal that the rule hides when a model prefers one image. It requires that the correct logits
    have a larger sum than the wrong ones. For embeddings this means (e0 - e1).(i0 - i1) > 0. Guessing scores 50 %.

    Args:
        logits: Logit of each statement for each image, with the model's temperature, (P, 2 statements, 2 images).
        truth: The image that each statement belongs to, 0 (an odd question id) or 1 (an even one), (P, 2).

    Raises:
        ValueError: If the shapes do not fit pairs.
    """
    if logits.shape[1:] != (2, 2) or truth.shape != logits.shape[:2]:
        raise ValueError(
            f"expected MMVP pairs, (P, 2, 2) logits and (P, 2) truth, got {logits.shape} and {truth.shape}"
        )
    probability = torch.from_numpy(np.asarray(logits, dtype=np.float32)).softmax(dim=-1)[..., 0].numpy()
    prediction = np.where(probability > 0.5, 0, 1)
    right = prediction == truth
    correct_logits = np.take_along_axis(np.asarray(logits, dtype=np.float64), truth[..., None], axis=-1)[..., 0]
    # "The correct sum exceeds the wrong sum", written without the wrong sum.
    aligned = 2 * correct_logits.sum(axis=1) > logits.sum(axis=(1, 2), dtype=np.float64)
    return MmvpResult(probability, prediction, right, right.all(axis=1), aligned)


@dataclass(frozen=True)
class ChoiceResult:
    """Outcome of each item, (P,).

    `text` chooses the statement of each image, `image` the reverse, and `group` is both. An item with one image has no
    image to choose, so its `image` outcome is always True.
    """

    text: NDArray[np.bool_]
    image: NDArray[np.bool_]
    group: NDArray[np.bool_]


def choose(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> ChoiceResult:
    """Score caption choice of any shape by Winoground's rule.

    Each image's correct statement must beat all wrong ones, and the reverse. A tie or a NaN is wrong, so a model that
    cannot distinguish the items scores 0.

    Args:
        scores: Score of each statement for each image, (P, S, I).
        right: True where statement and image belong together, (S, I) for all items or (P, S, I).
    """
    matches = np.broadcast_to(right, scores.shape)
    text = _beats_the_wrong(scores, matches, axis=1)
    image = _beats_the_wrong(scores, matches, axis=2)
    return ChoiceResult(text, image, text & image)


def _beats_the_wrong(scores: NDArray[np.floating], matches: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Check whether the best match along `axis` beats every non-match, in all rows that have a match, (P,)."""
    best_right = np.where(matches, scores, -np.inf).max(axis=axis)
    best_wrong = np.where(matches, -np.inf, scores).max(axis=axis)
    has_match = matches.any(axis=axis)  # SugarCrepe's wrong statement belongs to no image, so nothing can be right
    won: NDArray[np.bool_] = ((best_right > best_wrong) | ~has_match).all(axis=1)
    return won
