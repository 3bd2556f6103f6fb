"""Confusions of classifiers and detectors: a matrix of few classes, the most frequent pairs of many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix

from detection_world import make_world
from vfm.eval.detection.detection_confusions import detection_confusion_panel, detection_confusions
from vfm.eval.detection.detection_rules import GroundTruth
from vfm.eval.detection.detections import read_results
from vfm.eval.encode.confusions import CONFUSIONS, confusion_panel


def test_the_matrix_of_few_classes_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    panel = confusion_panel(list("abcde"), labels, predicted, "clip")
    assert panel.columns == ["class", *"abcde"]
    assert [row[1:] for row in panel.rows] == confusion_matrix(labels, predicted).tolist()


def test_of_many_classes_the_most_frequent_pairs_are_listed() -> None:
    rng = np.random.default_rng(1)
    names = [f"class {c}" for c in range(40)]
    labels, predicted = rng.integers(0, 40, 4000), rng.integers(0, 40, 4000)
    matrix = confusion_matrix(labels, predicted)
    totals = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    panel = confusion_panel(names, labels, predicted, "clip")
    assert len(panel.rows) == CONFUSIONS
    assert [row[2] for row in panel.rows] == sorted(matrix.ravel(), reverse=True)[:CONFUSIONS]
    for label, guess, count, share in panel.rows:
        true, taken = names.index(str(label)), names.index(str(guess))
        assert count == matrix[true, taken]
        assert share == round(100 * count / totals[true], 1)


Box = list[float]


def overlap(one: Box, other: Box) -> float:
    """IoU of two boxes by their corners."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def pairs_of_image(detections: list[tuple[int, Box]], objects: list[tuple[int, Box]]) -> list[tuple[int, int]]:
    """Match the nearest two of all boxes again and again, in plain Python; 3 is the background."""
    pairs = []
    detections, objects = list(detections), list(objects)
    while detections and objects:
        nearest = max((overlap(d[1], o[1]), i, j) for i, d in enumerate(detections) for j, o in enumerate(objects))
        if nearest[0] < 0.5:
            break
        pairs.append((objects.pop(nearest[2])[0], detections.pop(nearest[1])[0]))
    return [*pairs, *((label, 3) for label, _ in objects), *((3, label) for label, _ in detections)]


def test_confusions_of_detections_equal_a_plain_loop(tmp_path: Path) -> None:
    world = make_world(tmp_path, 4, images=60)
    truth, detections = GroundTruth.of(world.source, "coco"), read_results(world.results, world.source)
    objects = truth.objects
    free = ~(objects.crowd | objects.ignored)
    expected = []
    for image in range(len(world.source)):
        if not free[objects.image == image].all():
            continue  # the loop knows no crowds
        seen = detections[(detections.image == image) & (detections.scores >= 0.3)]
        known = objects[objects.image == image]
        expected += pairs_of_image(
            list(zip(seen.labels.tolist(), seen.boxes.tolist(), strict=True)),
            list(zip(known.labels.tolist(), known.boxes.tolist(), strict=True)),
        )
    without_crowds = [image for image in range(len(world.source)) if free[objects.image == image].all()]
    assert len(without_crowds) >= 30
    part = replace(truth, objects=objects[np.isin(objects.image, without_crowds)])
    pairs = detection_confusions(detections[np.isin(detections.image, without_crowds)], part, "boxes")
    assert sorted(zip(*(labels.tolist() for labels in pairs), strict=True)) == sorted(expected)
    assert {(0, 0), (0, 1), (0, 3), (3, 0)} <= set(expected)


def test_each_object_and_each_detection_counts_once_and_crowds_never(tmp_path: Path) -> None:
    world = make_world(tmp_path, 5, images=40)
    truth, detections = GroundTruth.of(world.source, "coco"), read_results(world.results, world.source)
    free = ~(truth.objects.crowd | truth.objects.ignored)
    assert not free.all()
    true, predicted = detection_confusions(detections, truth, "boxes", min_score=0.5)
    assert np.bincount(true, minlength=4)[:3].tolist() == np.bincount(truth.objects.labels[free], minlength=3).tolist()
    confident = np.bincount(detections.labels[detections.scores >= 0.5], minlength=3)
    counted = np.bincount(predicted, minlength=4)[:3]
    assert (counted <= confident).all()
    assert counted.sum() < confident.sum()  # detections on crowds
    assert not ((true == 3) & (predicted == 3)).any()


def test_the_panel_has_a_row_and_a_column_for_the_background(tmp_path: Path) -> None:
    world = make_world(tmp_path, 6)
    truth, detections = GroundTruth.of(world.source, "coco"), read_results(world.results, world.source)
    panel = detection_confusion_panel(detections, truth, "boxes", "vit")
    assert panel.title == "Confusion matrix"
    assert panel.columns[-1] == panel.rows[-1][0] == "background"
    assert panel.rows[-1][-1] == 0
    assert panel.note == (
        "Objects by class (rows) and by the prediction of vit (columns). Detections with a score of 0.3 or more,"
        " matched with objects from an IoU of 0.5 on."
    )
