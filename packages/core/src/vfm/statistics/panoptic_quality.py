"""Panoptic quality over resamples of the images. Segments are matched by an IoU above one half.

Source: Kirillov et al. 2019, Panoptic segmentation (arXiv:1801.00868), section 4. Crowds are as in its official code.
"""

# I images, K classes, R resamples, (H, W) one map, P predicted and G true segments

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfm.statistics.resampling import NUM_RESAMPLES, ResampledScore, image_weights, mean_of_known

HALF = 0.5  # only one segment of a map can have a larger IoU with another one


@dataclass(frozen=True)
class Segments:
    """A panoptic map.

    It has the number of each pixel's segment, -1 if it has none, (H, W), and the class of each segment.
    """

    numbers: NDArray[np.integer]
    labels: NDArray[np.integer]
    crowd: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class SegmentCounts:
    """Matches of an image by class, (K,) each."""

    iou: NDArray[np.float64]
    true: NDArray[np.int64]
    wrong: NDArray[np.int64]
    missed: NDArray[np.int64]


def count_segments(truth: Segments, predicted: Segments, num_classes: int) -> SegmentCounts:
    """Match the segments of an image.

    Unlabelled pixels do not count in the area of a predicted segment. A predicted segment is ignored if more than half
    of it lies on unlabelled pixels and crowds of its class. A crowd is never missed.

    Args:
        truth: Annotated segments.
        predicted: Predicted segments.
        num_classes: Number of classes.
    """
    num_true = len(truth.labels)
    num_predicted = len(predicted.labels)
    crowd = np.zeros(num_true, dtype=bool) if truth.crowd is None else truth.crowd
    # One number for each pair of segments, so that a single count gives all overlaps. Row and column 0 are pixels
    # without a segment.
    pairs = (truth.numbers.astype(np.int64) + 1) * (num_predicted + 1) + predicted.numbers + 1
    overlap = np.bincount(pairs.ravel(), minlength=(num_true + 1) * (num_predicted + 1))
    overlap = overlap.reshape(num_true + 1, num_predicted + 1)
    true_area = overlap[1:].sum(axis=1)
    predicted_area = overlap[:, 1:].sum(axis=0)
    unlabelled, inside = overlap[0, 1:], overlap[1:, 1:]  # (P,), (G, P)
    union = true_area[:, None] + predicted_area - inside - unlabelled
    same = (truth.labels[:, None] == predicted.labels) & ~crowd[:, None]
    ious = np.where(same & (inside > 0), inside / np.maximum(union, 1), 0.0)
    rows, columns = np.nonzero(ious > HALF)  # above one half a match is unique
    of_crowds = np.where(truth.labels[:, None] == predicted.labels, inside, 0)[crowd].sum(axis=0)
    left = np.setdiff1d(np.flatnonzero(predicted_area > 0), columns)
    # A prediction that lies mostly on unlabelled pixels or in a crowd of its class cannot be called wrong.
    wrong = left[(unlabelled + of_crowds)[left] <= HALF * predicted_area[left]]
    missed = np.setdiff1d(np.flatnonzero(~crowd & (true_area > 0)), rows)
    labels = truth.labels[rows]
    return SegmentCounts(
        np.bincount(labels, weights=ious[rows, columns], minlength=num_classes).astype(np.float64),
        np.bincount(labels, minlength=num_classes),
        np.bincount(predicted.labels[wrong], minlength=num_classes),
        np.bincount(truth.labels[missed], minlength=num_classes),
    )


@dataclass(frozen=True)
class PanopticQuality:
    """Matches of all images, (I, K) each."""

    iou: NDArray[np.float64]
    true: NDArray[np.int64]
    wrong: NDArray[np.int64]
    missed: NDArray[np.int64]

    @classmethod
    def of(cls, counts: Sequence[SegmentCounts]) -> PanopticQuality:
        """Collect the counts of images, in their order."""
        return cls(
            iou=np.stack([count.iou for count in counts]),
            true=np.stack([count.true for count in counts]),
            wrong=np.stack([count.wrong for count in counts]),
            missed=np.stack([count.missed for count in counts]),
        )

    def by_class(self, weights: NDArray[np.integer]) -> dict[str, NDArray[np.float64]]:
        """Compute panoptic, segmentation and recognition quality of each class, (R, K) each. NaN without segments."""
        table = weights.astype(np.float64)
        iou = table @ self.iou
        true = table @ self.true
        wrong = table @ self.wrong
        missed = table @ self.missed
        size = true + wrong / 2 + missed / 2
        known = size > 0
        quality = np.where(known, iou / np.where(known, size, 1), np.nan)
        recognition = np.where(known, true / np.where(known, size, 1), np.nan)
        # Without a matched segment the sum of IoUs is 0, and so is the quotient.
        return {"pq": quality, "sq": np.where(known, iou / np.maximum(true, 1e-12), np.nan), "rq": recognition}

    def scores(self, things: NDArray[np.bool_], num_resamples: int = NUM_RESAMPLES) -> list[ResampledScore]:
        """Compute PQ, SQ, RQ and the PQ of things and of the other classes, (K,), each over resamples of the images.

        Classes without a true segment are left out, whatever is predicted, so that all models have the same scores.
        """
        images, in_truth = len(self.true), (self.true + self.missed).any(axis=0)
        every = np.ones(len(things), dtype=bool)
        wanted = {"pq": every, "sq": every, "rq": every, "pq_things": things, "pq_stuff": ~things}
        scores = []
        for name, classes in wanted.items():
            if not (classes & in_truth).any():
                continue

            def reduced(
                weights: NDArray[np.integer], kind: str = name[:2], chosen: NDArray[np.bool_] = classes
            ) -> NDArray[np.float64]:
                return mean_of_known(self.by_class(weights)[kind][:, chosen])

            scores.append(
                ResampledScore(
                    name,
                    float(reduced(np.ones((1, images), dtype=np.int64))[0]),
                    images,
                    lambda seed, reduced=reduced: reduced(image_weights(images, num_resamples, seed)),  # type: ignore[misc]
                )
            )
        return scores
