"""Score detections by AP for IoU, area, frequency and class, and by recall, with resamples of the images."""

# A ranges of area, T thresholds of IoU, K classes, R resamples, I images

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vfm.eval.detection.detection_rules import AREAS, Shape
from vfm.statistics.matching import THRESHOLDS
from vfm.statistics.precision_recall import ClassRows, precision_recall
from vfm.statistics.resampling import ResampledScore, image_weights, mean_of_known

PREFIX: dict[Shape, str] = {"boxes": "box", "masks": "mask"}
FREQUENCIES = ("r", "c", "f")
RECALL_RANKS = (1, 10)  # COCO's, next to the largest number


@dataclass(frozen=True)
class PrecisionRecallTables:
    """Average precision and recall, (R, A, T, K) each, NaN for classes without objects."""

    precision: NDArray[np.float32]
    recall: NDArray[np.float32]


@dataclass
class DetectionScores:
    """All scores of a model on a dataset, by boxes or by masks.

    Attributes:
        shape: Boxes or masks.
        classes: Matched detections of each class.
        num_images: Number of images in the dataset.
        frequency: LVIS' frequency group of each class, or empty.
        num_resamples: Number of resamples for an interval.
    """

    shape: Shape
    classes: Sequence[ClassRows]
    num_images: int
    frequency: Sequence[str]
    num_resamples: int
    _resampled: dict[int, PrecisionRecallTables] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.point = self._tables(np.ones((1, self.num_images), dtype=np.int64))

    def scores(self) -> list[ResampledScore]:
        """Compute AP (also at IoU 0.5 and 0.75, by area, by frequency) and AR. Scores without objects are left out."""
        prefix = PREFIX[self.shape]
        every = slice(None)
        scores = [
            self._score(f"{prefix}_ap", 0, every, every),
            self._score(f"{prefix}_ap50", 0, [0], every),
            self._score(f"{prefix}_ap75", 0, [5], every),
        ]
        for number, name in enumerate(AREAS):
            if number:  # the first range has all areas
                scores.append(self._score(f"{prefix}_ap_{name}", number, every, every))
        for group in FREQUENCIES if self.frequency else ():
            members = np.flatnonzero(np.array(self.frequency) == group).tolist()
            if members:
                scores.append(self._score(f"{prefix}_ap_freq_{group}", 0, every, members))
        scores.append(self._score(f"{prefix}_ar", 0, every, every, recall=True))
        return [score for score in scores if np.isfinite(score.value)]

    def by_class(self) -> NDArray[np.float64]:
        """Compute AP and AP50 of each class, (K, 2), NaN without objects."""
        table = self.point.precision[0, 0].astype(np.float64)  # (T, K)
        return np.stack([table.mean(axis=0), table[0]], axis=1)

    def recalls(self) -> dict[int, float]:
        """Compute the mean recall with 1 and with 10 detections per image and class."""
        weights = np.ones((1, self.num_images), dtype=np.int64)
        recalls = {}
        for rank in RECALL_RANKS:
            table = [precision_recall(rows, weights, rank).recall[0, 0] for rows in self.classes]
            recalls[rank] = float(mean_of_known(np.array(table), axis=(0, 1)))
        return recalls

    def _score(
        self,
        metric: str,
        area: int,
        levels: slice | list[int],
        classes: slice | list[int],
        *,
        recall: bool = False,
    ) -> ResampledScore:
        def reduced(tables: PrecisionRecallTables) -> NDArray[np.float64]:
            table = (tables.recall if recall else tables.precision)[:, area][:, levels][:, :, classes]
            return mean_of_known(table, axis=(1, 2))

        images = self.num_images
        if metric.rsplit("_", 1)[-1] in FREQUENCIES:
            # The size of a frequency group is the number of images with an object of its classes.
            with_objects: set[int] = set()
            for label, rows in enumerate(self.classes):
                if isinstance(classes, slice) or label in classes:
                    with_objects.update(rows.object_image[rows.object_counts[area]].tolist())
            images = len(with_objects)
        value = float(reduced(self.point)[0])
        return ResampledScore(metric, value, images, lambda seed: reduced(self._drawn(seed)))

    def _drawn(self, seed: int) -> PrecisionRecallTables:
        if seed not in self._resampled:  # all scores share the resamples of a seed
            self._resampled[seed] = self._tables(image_weights(self.num_images, self.num_resamples, seed))
        return self._resampled[seed]

    def _tables(self, weights: NDArray[np.int64]) -> PrecisionRecallTables:
        shape = (len(self.classes), len(weights), len(AREAS), len(THRESHOLDS))
        dtype = np.float64 if len(weights) == 1 else np.float32  # 500 resamples of 1,203 classes take 96 MB each
        precision, recall = np.full(shape, np.nan, dtype=dtype), np.full(shape, np.nan, dtype=dtype)
        for label, rows in enumerate(self.classes):
            if rows.object_counts.any():
                of_class = precision_recall(rows, weights)
                precision[label] = of_class.precision
                recall[label] = of_class.recall
        return PrecisionRecallTables(precision.transpose(1, 2, 3, 0), recall.transpose(1, 2, 3, 0))
