"""The step from scores of words to a class for each pixel, and the choice of the background threshold."""

# W words, K classes, T thresholds, I images, (H, W) size of an image

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.statistics.mean_iou import MeanIou, PixelCounts
from vfm.statistics.resampling import mean_of_known


@dataclass(frozen=True)
class Guess:
    """The best class of each pixel, (H, W), and its probability."""

    labels: NDArray[np.int64]
    probability: NDArray[np.float32]

    def at(self, threshold: float, background: int | None) -> NDArray[np.int64]:
        """Apply a threshold: pixels with a lower probability become background."""
        if background is None:
            return self.labels
        return np.where(self.probability < np.float32(threshold), background, self.labels)


def decide(
    cosines: Tensor, owners: Tensor, logit_scale: float, *, background: int | None = None, min_area: float = 0.0
) -> Guess:
    """Choose the best class of each pixel by softmax over all words. The best word of a class counts for it.

    Args:
        cosines: Cosine of each word and pixel, (W, H, W).
        owners: Class of each word, (W,), ascending from 0 to K-1.
        logit_scale: Factor of the cosines.
        background: The class that `min_area` does not apply to.
        min_area: Classes that win a smaller share of the foreground are not predicted.
    """
    words = (logit_scale * cosines).softmax(dim=0)
    num_classes = int(owners[-1]) + 1
    if num_classes == len(words):
        classes = words
    else:
        class_of_word = owners[:, None, None].expand_as(words)
        classes = words.new_zeros(num_classes, *words.shape[1:]).scatter_reduce(0, class_of_word, words, "amax")
    if min_area and background is not None:
        won = torch.bincount(classes.argmax(dim=0).flatten(), minlength=num_classes)
        won[background] = 0  # `min_area` is a share of the foreground
        seen = won > min_area * won.sum()
        seen[background] = True
        classes = classes * seen[:, None, None]
    probability, labels = classes.max(dim=0)
    return Guess(labels.cpu().numpy(), probability.cpu().numpy())


@dataclass(frozen=True)
class ThresholdCounts:
    """Pixel counts of an image by class and threshold.

    Right and predicted pixels are (T, K), true ones (K,). They are int32 to save memory, since a dataset has many
    images.
    """

    right: NDArray[np.int32]
    predicted: NDArray[np.int32]
    true: NDArray[np.int32]


def counts_by_threshold(
    truth: NDArray[np.integer], guess: Guess, thresholds: Sequence[float], background: int | None, num_classes: int
) -> ThresholdCounts:
    """Count pixels as `count_pixels` does, but for all thresholds in one pass.

    Args:
        truth: Class of each pixel, -1 if ignored, (H, W).
        guess: Predictions for the same pixels.
        thresholds: T thresholds in ascending order.
        background: Class of pixels below the threshold. Without one, thresholds have no effect.
        num_classes: Number of classes, K.
    """
    known = truth >= 0
    true = truth[known].astype(np.int64)
    labels = guess.labels[known]
    of_true = np.bincount(true, minlength=num_classes)
    # Bin t has the pixels that pass exactly the first t thresholds.
    limits = np.asarray(thresholds, dtype=np.float32)
    bins = np.searchsorted(limits, guess.probability[known], side="right")
    if background is None:
        bins = np.full_like(bins, len(limits))

    def passing(pixels: NDArray[np.bool_] | slice) -> NDArray[np.int64]:
        """Count by class the pixels that pass each threshold, (T, K)."""
        by_bin = _histogram(bins[pixels], labels[pixels], len(limits) + 1, num_classes)
        return np.asarray(by_bin[::-1].cumsum(axis=0)[::-1][1:])

    predicted = passing(slice(None))
    right = passing(true == labels)
    if background is not None:
        # Pixels that do not pass are predicted as background.
        background_passing = passing(true == background).sum(axis=1)
        predicted[:, background] += len(true) - predicted.sum(axis=1)
        right[:, background] += of_true[background] - background_passing
    return ThresholdCounts(right.astype(np.int32), predicted.astype(np.int32), of_true.astype(np.int32))


def at_thresholds(counts: Sequence[ThresholdCounts], chosen: NDArray[np.int64]) -> MeanIou:
    """Collect the counts of all images, each at its chosen threshold, given by index, (I,)."""
    pixels = []
    for of_image, index in zip(counts, chosen, strict=True):
        right = of_image.right[index].astype(np.int64)
        predicted = of_image.predicted[index].astype(np.int64)
        pixels.append(PixelCounts(right, predicted, of_image.true.astype(np.int64)))
    return MeanIou.of(pixels)


def choose_thresholds(counts: Sequence[ThresholdCounts], half: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the threshold of each image as the one with the best mean IoU on the other half of the images.

    Args:
        counts: Counts of each image.
        half: 0 or 1 for each image.

    Returns:
        Indices of the thresholds, (I,).
    """
    num_thresholds, num_classes = counts[0].right.shape
    right = np.zeros((2, num_thresholds, num_classes), dtype=np.int64)
    predicted = np.zeros_like(right)
    true = np.zeros((2, 1, num_classes), dtype=np.int64)
    for of_image, side in zip(counts, half.tolist(), strict=True):
        right[side] += of_image.right
        predicted[side] += of_image.predicted
        true[side] += of_image.true
    union = predicted + true - right
    share = np.where(union > 0, right / np.maximum(union, 1), np.nan)
    best = np.argmax(mean_of_known(share), axis=1)  # of each half, 0 if it has no images
    return np.asarray(best[1 - half], dtype=np.int64)


def halves(num_images: int, seed: int) -> NDArray[np.int64]:
    """Assign each image to one of two random halves, 0 or 1."""
    return np.random.default_rng(seed).permutation(np.arange(num_images) % 2)


def _histogram(
    bins: NDArray[np.int64], labels: NDArray[np.int64], num_bins: int, num_classes: int
) -> NDArray[np.int64]:
    flat = np.bincount(bins * num_classes + labels, minlength=num_bins * num_classes)
    return flat.reshape(num_bins, num_classes)
