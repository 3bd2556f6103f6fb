"""Mean intersection over union of semantic maps, from counts of pixels per image, over resamples of the images."""

# I images, K classes, R resamples, (H, W) one map

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vfm.statistics.resampling import NUM_RESAMPLES, ResampledScore, image_weights, mean_of_known

SetScore = Callable[[NDArray[np.integer]], NDArray[np.float64]]  # weights of images, (R, I) -> scores, (R,)


@dataclass(frozen=True)
class PixelCounts:
    """Number of pixels of an image by class, (K,) each, without unlabelled pixels."""

    right: NDArray[np.int64]
    predicted: NDArray[np.int64]
    true: NDArray[np.int64]


def count_pixels(truth: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int) -> PixelCounts:
    """Count the pixels of each class.

    Args:
        truth: Labels, (H, W). Pixels with a label below 0 do not count.
        predicted: Predicted labels, (H, W).
        num_classes: Number of classes.

    Raises:
        ValueError: If the maps differ in size, or a predicted class is out of range.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"expected maps of one size, got {truth.shape} and {predicted.shape}")
    known = truth >= 0
    a, b = truth[known].astype(np.int64), predicted[known].astype(np.int64)
    if b.size and not 0 <= b.min() <= b.max() < num_classes:
        raise ValueError(f"expected classes 0 to {num_classes - 1}, got {b.min()} to {b.max()}")
    right = np.bincount(a[a == b], minlength=num_classes)
    of_predicted = np.bincount(b, minlength=num_classes)
    of_true = np.bincount(a, minlength=num_classes)
    return PixelCounts(right, of_predicted, of_true)


@dataclass(frozen=True)
class MeanIou:
    """Pixel counts of all images, (I, K) each. Classes that are in no image, true or predicted, are left out."""

    right: NDArray[np.int64]
    predicted: NDArray[np.int64]
    true: NDArray[np.int64]

    @classmethod
    def of(cls, counts: list[PixelCounts]) -> MeanIou:
        """Collect the counts of images, in their order."""
        right = np.stack([count.right for count in counts])
        predicted = np.stack([count.predicted for count in counts])
        true = np.stack([count.true for count in counts])
        return cls(right, predicted, true)

    def by_class(self, weights: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """Compute the IoU of each class, (R, K), or (K,) without weights. NaN for a class in no image."""
        union = self.predicted + self.true - self.right
        if weights is None:
            return _share(self.right.sum(axis=0), union.sum(axis=0))
        table = weights.astype(np.float64)
        return _share(table @ self.right, table @ union)

    def scores(self, prefix: str = "", num_resamples: int = NUM_RESAMPLES) -> list[ResampledScore]:
        """Compute the mean IoU, the fraction of right pixels and its mean over classes, each over resamples."""
        images = len(self.right)

        def accuracy(weights: NDArray[np.integer]) -> NDArray[np.float64]:
            table = weights.astype(np.float64)
            return _share(table @ self.right.sum(axis=1), table @ self.true.sum(axis=1))

        def recall(weights: NDArray[np.integer]) -> NDArray[np.float64]:
            table = weights.astype(np.float64)
            return mean_of_known(_share(table @ self.right, table @ self.true))

        functions: dict[str, SetScore] = {
            "miou": lambda weights: mean_of_known(self.by_class(weights)),
            "pixel_acc": accuracy,
            "mean_acc": recall,
        }
        once = np.ones((1, images), dtype=np.int64)

        def resampled(score: SetScore, seed: int) -> NDArray[np.float64]:
            return score(image_weights(images, num_resamples, seed))

        scores = []
        for name, score in functions.items():
            scores.append(ResampledScore(prefix + name, float(score(once)[0]), images, partial(resampled, score)))
        return scores


def _share(part: NDArray[np.number], whole: NDArray[np.number]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
