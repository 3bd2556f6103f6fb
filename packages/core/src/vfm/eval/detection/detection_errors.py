"""Kinds of wrong detections (class, place, both, duplicate, background), and the objects that were missed.

Source: Bolya et al. 2020, TIDE (arXiv:2008.08115), section 2: foreground from IoU 0.5, background below 0.1.
"""

# D detections and G objects of one image

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from vfm.data.annotated.tables import ObjectArrays
from vfm.eval.detection.detection_rules import GroundTruth, Shape, ious_of, rows_by_key
from vfm.eval.detection.detections import Detections
from vfm.interfaces import TablePanel

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU, as in TIDE (arXiv:2008.08115)
KINDS = ("right", "class", "place", "both", "duplicate", "background", "missed")
MIN_SCORE = 0.3  # detections with lower scores are rarely shown or used


def errors_by_image(
    detections: Detections, truth: GroundTruth, shape: Shape, min_score: float = MIN_SCORE
) -> dict[int, Counter[str]]:
    """Count the detections of each kind, and the missed objects, in each image that has any.

    Args:
        detections: Detections of all images.
        truth: Objects of all images.
        shape: Shape by which detections are matched.
        min_score: Lowest score of a detection that counts.
    """
    return {
        image: classify_errors(ious, labels, objects.labels, objects.crowd | objects.ignored)
        for image, labels, objects, ious in confident_by_image(detections, truth, shape, min_score)
    }


def confident_by_image(
    detections: Detections, truth: GroundTruth, shape: Shape, min_score: float
) -> Iterator[tuple[int, NDArray[np.int64], ObjectArrays, NDArray[np.float64]]]:
    """Yield the images with detections or objects.

    Args:
        detections: Detections of all images.
        truth: Objects of all images.
        shape: What the IoUs compare.
        min_score: Lowest score of a detection that counts.

    Yields:
        Number of the image, classes of its confident detections, best first, its objects, and IoUs of detections with
        objects.
    """
    confident = detections[detections.scores >= min_score]
    confident = confident[np.argsort(-confident.scores, kind="stable")]
    detection_rows = rows_by_key(confident.image)
    object_rows = rows_by_key(truth.objects.image)
    nothing = np.empty(0, dtype=np.int64)
    for image in sorted(detection_rows.keys() | object_rows.keys()):
        of_image = confident[detection_rows.get(image, nothing)]
        objects = truth.objects[object_rows.get(image, nothing)]
        width, height = truth.source.sizes[image]
        yield image, of_image.labels, objects, ious_of(of_image, objects, shape, height, width)


def classify_errors(
    ious: NDArray[np.float64],
    found_labels: NDArray[np.int64],
    true_labels: NDArray[np.int64],
    ignored: NDArray[np.bool_],
) -> Counter[str]:
    """Classify the detections in an image, best first, and count the missed objects.

    Args:
        ious: (D, G).
        found_labels: Classes of the detections, (D,).
        true_labels: Classes of the objects, (G,).
        ignored: True for objects that do not count, (G,). Detections on them are not counted either.
    """
    counts: Counter[str] = Counter()
    free = ~ignored
    for iou, label in zip(ious, found_labels.tolist(), strict=True):
        same = np.where(true_labels == label, iou, 0.0)
        right = np.where(free & (same >= FOREGROUND), same, 0.0)
        if right.any():
            free[int(np.argmax(right))] = False  # a further detection of this object is a duplicate
            counts["right"] += 1
        elif ((iou >= FOREGROUND) & ignored).any():
            continue
        elif (same >= FOREGROUND).any():
            counts["duplicate"] += 1
        elif (same >= BACKGROUND).any():
            counts["place"] += 1
        elif (iou >= FOREGROUND).any():
            counts["class"] += 1
        else:
            counts["both" if (iou >= BACKGROUND).any() else "background"] += 1
    counts["missed"] += int(free.sum())
    return counts


def error_panel(errors: Mapping[str, Mapping[int, Counter[str]]]) -> TablePanel:
    """Build a table of the kinds of errors by model, over all images."""
    rows: list[list[str | float | int | None]] = []
    for name, by_image in errors.items():
        totals = sum(by_image.values(), Counter())
        rows.append([name, *(totals[kind] for kind in KINDS)])
    note = (
        f"Detections with a score of {MIN_SCORE} or more. class: right place, another class; place: an IoU of 0.1 to"
        " 0.5 with an object of the class; both: neither; duplicate: its object was found already; missed: objects"
        " that were not found."
    )
    return TablePanel(title="Where errors come from", note=note, order=35, columns=["model", *KINDS], rows=rows)
