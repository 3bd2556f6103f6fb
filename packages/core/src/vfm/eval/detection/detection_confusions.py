"""Find the classes that objects are taken for by a detector, with the background as one more class."""

# D detections and G objects of one image

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm.eval.detection.detection_errors import FOREGROUND, MIN_SCORE, confident_by_image
from vfm.eval.detection.detection_rules import GroundTruth, Shape
from vfm.eval.detection.detections import Detections
from vfm.eval.encode.confusions import confusion_panel
from vfm.interfaces import TablePanel

Labels = NDArray[np.int64]


def detection_confusions(
    detections: Detections, truth: GroundTruth, shape: Shape, min_score: float = MIN_SCORE
) -> tuple[Labels, Labels]:
    """List the true and the predicted class of all objects and confident detections.

    The background has the number after the last class. It is the prediction for missed objects, and the true class of
    detections without an object. Objects that do not count are left out, and so are detections on them.

    Args:
        detections: Detections of all images.
        truth: Objects of all images.
        shape: Shape by which detections are matched.
        min_score: Lowest score of a detection that counts.
    """
    true: list[int] = []
    predicted: list[int] = []
    background = truth.num_classes
    for _, labels, objects, ious in confident_by_image(detections, truth, shape, min_score):
        ignored = objects.crowd | objects.ignored
        # Whatever their classes, as confusions are pairs of different classes.
        matches = match_by_iou(np.where(ignored, 0.0, ious))
        for detection, label in enumerate(labels.tolist()):
            if detection in matches:
                true.append(int(objects.labels[matches[detection]]))
            elif not ((ious[detection] >= FOREGROUND) & ignored).any():
                true.append(background)
            else:
                continue
            predicted.append(label)
        missed = objects.labels[sorted(set(np.flatnonzero(~ignored).tolist()) - set(matches.values()))]
        true += missed.tolist()
        predicted += [background] * len(missed)
    return np.array(true, dtype=np.int64), np.array(predicted, dtype=np.int64)


def match_by_iou(ious: NDArray[np.float64]) -> dict[int, int]:
    """Match detections and objects of any classes, the largest IoU from `FOREGROUND` on first.

    Args:
        ious: (D, G).

    Returns:
        The object by detection.
    """
    matches: dict[int, int] = {}
    for flat in np.argsort(-ious, axis=None, kind="stable"):
        detection, number = divmod(int(flat), ious.shape[1])
        if ious[detection, number] < FOREGROUND:
            break
        if detection not in matches and number not in matches.values():
            matches[detection] = number
    return matches


def detection_confusion_panel(detections: Detections, truth: GroundTruth, shape: Shape, model: str) -> TablePanel:
    """Build the confusion matrix of a detector. With many classes, it has the most frequent confusions.

    Args:
        detections: Detections of all images.
        truth: Objects of all images.
        shape: Shape by which detections are matched.
        model: Name of the model.
    """
    true, predicted = detection_confusions(detections, truth, shape)
    note = f"Detections with a score of {MIN_SCORE} or more, matched with objects from an IoU of {FOREGROUND} on."
    names = [*truth.source.dataset.class_names, "background"]
    return confusion_panel(names, true, predicted, model, unit="objects", note=note)
