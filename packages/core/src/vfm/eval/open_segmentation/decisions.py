"""From scores of words to a class for each pixel, and the choice of the background's threshold."""

# W words, K classes, T thresholds, I images, (H, W) a picture

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.statistics.mean_iou import MeanIou, PixelCounts
from vfm.statistics.resampling import mean_of_known

PARTS = ("right", "predicted")


@dataclass(frozen=True)
class Guess:
    """The best class of each pixel, (H, W), and its probability."""

    labels: NDArray[np.int64]
    probability: NDArray[np.float32]

    def at(self, threshold: float, background: int | None) -> NDArray[np.int64]:
        """Return the classes, the background where the probability is below the threshold."""
        if background is None:
            return self.labels
        return np.where(self.probability < np.float32(threshold), background, self.labels)


def decide(
    cosines: Tensor, owners: Tensor, logit_scale: float, *, background: int | None = None, min_area: float = 0.0
) -> Guess:
    """Return the best class of each pixel: softmax over all words, then the largest of each class's words.

    Args:
        cosines: of pixels and words, (W, H, W).
        owners: class of each word, (W,), ascending from 0 to K-1.
        logit_scale: factor of the cosines.
        background: the class that `min_area` leaves out.
        min_area: other classes that win a smaller share of the foreground are not predicted.
    """
    words = (logit_scale * cosines).softmax(dim=0)
    num_classes = int(owners[-1]) + 1
    if num_classes == len(words):
        classes = words
    else:
        places = owners[:, None, None].expand_as(words)
        classes = words.new_zeros(num_classes, *words.shape[1:]).scatter_reduce(0, places, words, "amax")
    if min_area and background is not None:
        won = torch.bincount(classes.argmax(dim=0).flatten(), minlength=num_classes)
        won[background] = 0
        seen = won > min_area * won.sum()
        seen[background] = True
        classes = classes * seen[:, None, None]
    probability, labels = classes.max(dim=0)
    return Guess(labels.cpu().numpy(), probability.cpu().numpy())


@dataclass(frozen=True)
class ThresholdCounts:
    """Pixels of one image by class and threshold, int32 since a set has many: right and predicted (T, K), true (K,)."""

    right: NDArray[np.int32]
    predicted: NDArray[np.int32]
    true: NDArray[np.int32]


def counts_by_threshold(
    truth: NDArray[np.integer], guess: Guess, thresholds: Sequence[float], background: int | None, num_classes: int
) -> ThresholdCounts:
    """Return what `count_pixels` returns for each threshold, from one pass over the pixels.

    Args:
        truth: class of each pixel, -1: ignored, (H, W).
        guess: of the same pixels.
        thresholds: ascending, T of them.
        background: class below the threshold; None: the thresholds change nothing.
        num_classes: K.
    """
    known = truth >= 0
    true, labels = truth[known].astype(np.int64), guess.labels[known]
    of_true = np.bincount(true, minlength=num_classes)
    # Bin t: pixels that pass the first t thresholds and no more.
    limits = np.asarray(thresholds, dtype=np.float32)
    bins = np.searchsorted(limits, guess.probability[known], side="right")
    if background is None:
        bins = np.full_like(bins, len(limits))
    predicted, right, ground = (
        _histogram(bins[some], labels[some], len(limits) + 1, num_classes)[::-1].cumsum(axis=0)[::-1][1:]
        for some in (slice(None), true == labels, true == background)
    )  # (T, K) each, of the pixels that pass
    if background is not None:
        predicted[:, background] += len(true) - predicted.sum(axis=1)
        right[:, background] += of_true[background] - ground.sum(axis=1)
    return ThresholdCounts(*(counts.astype(np.int32) for counts in (right, predicted, of_true)))


def at_thresholds(counts: Sequence[ThresholdCounts], places: NDArray[np.int64]) -> MeanIou:
    """Return the counts of all images, each at its own threshold, whose place is given, (I,)."""
    chosen = [
        PixelCounts(one.right[place].astype(np.int64), one.predicted[place].astype(np.int64), one.true.astype(np.int64))
        for one, place in zip(counts, places, strict=True)
    ]
    return MeanIou.of(chosen)


def choose_thresholds(counts: Sequence[ThresholdCounts], half: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of the threshold of each image, (I,): the one with the best mean IoU on the other half.

    Args:
        counts: of each image.
        half: 0 or 1 for each image.
    """
    chosen = np.zeros(len(half), dtype=np.int64)
    for own in (0, 1):
        others = [one for one, side in zip(counts, half, strict=True) if side != own]
        if others:
            right, predicted = (sum(getattr(one, name).astype(np.int64) for one in others) for name in PARTS)
            true = sum(one.true.astype(np.int64) for one in others)
            union = predicted + true - right  # (T, K)
            share = np.where(union > 0, right / np.maximum(union, 1), np.nan)
            chosen[half == own] = int(np.argmax(mean_of_known(share)))
    return chosen


def halves(num_images: int, seed: int) -> NDArray[np.int64]:
    """Return 0 or 1 for each image: a random half."""
    return np.random.default_rng(seed).permutation(np.arange(num_images) % 2)


def _histogram(
    bins: NDArray[np.int64], labels: NDArray[np.int64], num_bins: int, num_classes: int
) -> NDArray[np.int64]:
    flat = np.bincount(bins * num_classes + labels, minlength=num_bins * num_classes)
    return flat.reshape(num_bins, num_classes)
