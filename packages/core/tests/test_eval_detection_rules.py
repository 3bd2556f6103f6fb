"""Scores of detections equal those of pycocotools, lvis-api and faster-coco-eval; and what must hold of them."""

from __future__ import annotations

import json
from pathlib import Path

import faster_coco_eval
import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from lvis import LVIS, LVISEval, LVISResults
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection_world import CLASSES, DetectionWorld, as_masks, make_world, silent
from vfm.base import UserError
from vfm.eval.detection.detection_errors import classify_errors
from vfm.eval.detection.detection_rules import MAX_DETS, GroundTruth, Rule, Shape, box_ious, match_all
from vfm.eval.detection.detection_scores import DetectionScores
from vfm.eval.detection.detections import Detections, read_results, write_results_file
from vfm.eval.detection.soft_nms import IOU, soft_nms, soften

KINDS: dict[Shape, str] = {"boxes": "bbox", "masks": "segm"}
METRICS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")


def score(
    world: DetectionWorld, file: Path, shape: Shape, rule: Rule = "coco", limit: int | None = None
) -> DetectionScores:
    found, truth = read_results(file, world.source), GroundTruth.of(world.source, rule)
    rows = list(match_all(found, truth, shape, limit or MAX_DETS[rule]))
    return DetectionScores(shape, rows, len(world.source), world.source.dataset.frequency, 500)


def values(scores: DetectionScores) -> dict[str, float]:
    return {one.metric.partition("_")[2]: one.value for one in scores.scores()}


@pytest.mark.parametrize("shape", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_pycocotools(tmp_path: Path, seed: int, shape: Shape) -> None:
    world = make_world(tmp_path, seed)
    file = world.results if shape == "boxes" else as_masks(world)
    with silent():
        truth = COCO(str(world.truth))
        oracle = COCOeval(truth, truth.loadRes(str(file)), KINDS[shape])
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    found = score(world, file, shape)
    ours = values(found)
    np.testing.assert_allclose([ours.get(name, -1.0) for name in METRICS], oracle.stats[:6], rtol=0, atol=1e-12)
    recalls = found.recalls()
    np.testing.assert_allclose([recalls[1], recalls[10], ours["ar"]], oracle.stats[6:9], rtol=0, atol=1e-12)
    by_class = oracle.eval["precision"][:, :, :, 0, 2].mean(axis=(0, 1))
    np.testing.assert_allclose(found.by_class()[:, 0], by_class, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", KINDS)
def test_scores_equal_faster_coco_eval(tmp_path: Path, shape: Shape) -> None:
    world = make_world(tmp_path, 11)
    file = world.results if shape == "boxes" else as_masks(world)
    truth = faster_coco_eval.COCO(str(world.truth))
    oracle = faster_coco_eval.COCOeval_faster(
        truth, truth.loadRes(str(file)), KINDS[shape], print_function=lambda *_: None
    )
    oracle.run()
    ours = values(score(world, file, shape))
    np.testing.assert_allclose([ours.get(name, -1.0) for name in METRICS], oracle.stats[:6], rtol=0, atol=1e-12)


def test_fewer_detections_of_an_image_and_class(tmp_path: Path) -> None:
    world = make_world(tmp_path, 5, most=8)
    with silent():
        truth = COCO(str(world.truth))
        oracle = COCOeval(truth, truth.loadRes(str(world.results)), "bbox")
        oracle.params.maxDets = [1, 2, 3]
        oracle.evaluate()
        oracle.accumulate()
    expected = oracle.eval["precision"][:, :, :, 0, 2]
    assert values(score(world, world.results, "boxes", limit=3))["ap"] == pytest.approx(expected[expected > -1].mean())


@pytest.mark.parametrize("shape", KINDS)
@pytest.mark.parametrize("limit", [300, 2])
def test_scores_equal_lvis_api(tmp_path: Path, shape: Shape, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 says np.float, which NumPy has removed
    world = make_world(tmp_path, 21, lvis=True, most=6)
    file = world.results if shape == "boxes" else as_masks(world)
    truth = LVIS(str(world.truth))
    oracle = LVISEval(truth, LVISResults(truth, json.loads(file.read_text()), max_dets=limit), KINDS[shape])
    oracle.run()
    ours = values(score(world, file, shape, "lvis", limit))
    expected = oracle.get_results()
    for ours_name, name in zip((*METRICS, "ap_freq_r", "ap_freq_c", "ap_freq_f"), expected, strict=False):
        if expected[name] > -1:
            assert ours[ours_name] == pytest.approx(float(expected[name]), abs=1e-12), name


def test_detections_without_an_area_do_not_count_in_lvis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)
    world = make_world(tmp_path, 21, lvis=True, most=6)
    records = json.loads(world.results.read_text())
    empty = [{**record, "bbox": [*record["bbox"][:3], 0], "score": 0.99} for record in records[::5]]
    file = tmp_path / "with_empty.json"
    file.write_text(json.dumps([*records, *empty]))
    truth = LVIS(str(world.truth))
    oracle = LVISEval(truth, LVISResults(truth, json.loads(file.read_text()), max_dets=300), "bbox")
    oracle.run()
    found = values(score(world, file, "boxes", "lvis", 300))
    assert found["ap"] == pytest.approx(oracle.get_results()["AP"], abs=1e-12)
    assert found == values(score(world, world.results, "boxes", "lvis", 300))


def test_lvis_without_a_limit_for_an_image(tmp_path: Path) -> None:
    world = make_world(tmp_path, 22, lvis=True, most=6)
    assert values(score(world, world.results, "boxes", "lvis_fixed")) == values(
        score(world, world.results, "boxes", "lvis")
    )
    few = values(score(world, world.results, "boxes", "lvis_fixed", limit=5))
    assert few["ar"] < values(score(world, world.results, "boxes", "lvis", limit=300))["ar"]


def test_ious_of_pairs_equal_cocos_in_every_bit() -> None:
    rng = np.random.default_rng(0)
    boxes, others = (
        np.concatenate([low, low + rng.choice([0, 7.3, 50], (2000, 2)) * rng.random((2000, 2))], axis=1)
        for low in rng.uniform(0, 12, (2, 2000, 2))
    )
    crowd = rng.random(2000) < 0.3
    found = box_ious(boxes, others, crowd)
    sizes = [np.concatenate([one[:, :2], one[:, 2:] - one[:, :2]], axis=1) for one in (boxes, others)]
    expected = [coco_mask.iou(a[None], b[None], [int(c)])[0, 0] for a, b, c in zip(*sizes, crowd, strict=True)]
    assert (found > 0).sum() > 50
    assert found.tolist() == expected


def truth_as_found(world: DetectionWorld) -> Detections:
    objects = world.source.tables.all
    objects = objects[~objects.crowd]
    ones = np.ones(len(objects))
    return Detections(objects.image, objects.labels, ones, objects.boxes, objects.counts, ones)


def test_the_truth_has_a_score_of_one(tmp_path: Path) -> None:
    world = make_world(tmp_path, 2)
    for shape in KINDS:
        rows = list(match_all(truth_as_found(world), GroundTruth.of(world.source, "coco"), shape, 100))
        scores = DetectionScores(shape, rows, len(world.source), (), 500)
        assert all(one.value == pytest.approx(1.0) for one in scores.scores() if "_ap" in one.metric)


def test_the_order_of_the_results_has_no_effect_beyond_ties(tmp_path: Path) -> None:
    world = make_world(tmp_path, 3)
    found = read_results(world.results, world.source)
    rng = np.random.default_rng(0)
    distinct = found.with_scores(rng.permutation(len(found)) / len(found))
    shuffled = distinct[rng.permutation(len(found))]
    truth = GroundTruth.of(world.source, "coco")
    one, other = (
        DetectionScores("boxes", list(match_all(f, truth, "boxes", 100)), 24, (), 500) for f in (distinct, shuffled)
    )
    assert [s.value for s in one.scores()] == [s.value for s in other.scores()]


def test_all_classes_as_one_equal_pycocotools_without_categories(tmp_path: Path) -> None:
    world = make_world(tmp_path, 4)
    with silent():
        truth = COCO(str(world.truth))
        oracle = COCOeval(truth, truth.loadRes(str(world.results)), "bbox")
        oracle.params.useCats = 0
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    rows = list(
        match_all(
            read_results(world.results, world.source), GroundTruth.of(world.source, "coco", agnostic=True), "boxes", 100
        )
    )
    # The order of equal scores differs: pycocotools sorts an image's detections by class first.
    assert DetectionScores("boxes", rows, 24, (), 500).scores()[0].value == pytest.approx(oracle.stats[0], abs=0.02)


def test_intervals_and_differences_are_paired_over_images(tmp_path: Path) -> None:
    world = make_world(tmp_path, 6)
    found = read_results(world.results, world.source)
    worse = found[np.arange(len(found)) % 3 != 0]
    truth = GroundTruth.of(world.source, "coco")
    a, b = (DetectionScores("boxes", list(match_all(one, truth, "boxes", 100)), 24, (), 100) for one in (worse, found))
    first, second = a.scores()[0], b.scores()[0]
    low, high = first.interval()
    assert 0 <= low <= first.value <= high <= 1
    gap = second.difference(first)
    assert gap.low <= second.value - first.value <= gap.high
    assert second.difference(second).p_value == 1.0
    assert second.num_independent == 24


def soft_nms_plain(boxes: list[list[float]], scores: list[float]) -> list[float]:
    """Lower scores as the paper's pseudo-code reads."""

    def overlap(a: list[float], b: list[float]) -> float:
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        inner = max(0.0, w) * max(0.0, h)
        return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)

    found, left = list(scores), set(range(len(scores)))
    while left:
        best = max(sorted(left), key=lambda n: found[n])
        left.remove(best)
        for other in left:
            if (iou := overlap(boxes[best], boxes[other])) > IOU:
                found[other] *= 1 - iou
    return [value if value >= 1e-3 else 0.0 for value in found]


def test_soft_nms_equals_the_papers_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.uniform(0, 12, (8, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(20, 40, (8, 2))], axis=1)
        scores = rng.random(8)
        np.testing.assert_allclose(soft_nms(boxes, scores), soft_nms_plain(boxes.tolist(), scores.tolist()), atol=1e-12)


def test_soft_nms_stays_within_an_image_and_a_class() -> None:
    box, ones = np.array([[0.0, 0, 10, 10]] * 4), np.ones(4)
    found = Detections(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0]), 0.9 * ones, box, [None] * 4, ones)
    assert soften(found).scores.tolist() == [0.9, 0.9, 0.9]  # of two equal boxes one is left


def test_results_are_written_and_read_back(tmp_path: Path) -> None:
    world = make_world(tmp_path, 8)
    found = truth_as_found(world)
    write_results_file(tmp_path / "again.json", found, world.source)
    again = read_results(tmp_path / "again.json", world.source)
    assert again.counts == found.counts
    np.testing.assert_allclose(again.boxes, found.boxes, atol=1e-12)
    assert (again.labels == found.labels).all()


WRONG = {
    "the dataset has no image 999": {"image_id": 999},
    "the dataset has no class 2": {"category_id": 2},
    "expected an object with a finite `score`": {"score": None},
    "expected a `bbox` of four numbers, x, y, width and height": {"bbox": [1, 2]},
    "bad_mask: the mask does not fit an image of 200 x 150": {"segmentation": {"size": [5, 5], "counts": [25]}},
}


@pytest.mark.parametrize("line", WRONG)
def test_a_result_that_does_not_fit_is_one_line(tmp_path: Path, line: str) -> None:
    world = make_world(tmp_path, 9)
    good = {"image_id": 1, "category_id": CLASSES[0], "bbox": [1, 2, 3, 4], "score": 0.5}
    world.results.write_text(json.dumps([good, {**good, **WRONG[line]}]))
    with pytest.raises(UserError, match="result 1") as caught:
        read_results(world.results, world.source)
    assert line in str(caught.value)


def test_errors_are_classified() -> None:
    ious = np.array([[0.9, 0.0], [0.8, 0.0], [0.3, 0.0], [0.7, 0.0], [0.0, 0.2], [0.0, 0.0]])
    labels = np.array([0, 0, 0, 5, 5, 0])
    found = classify_errors(ious, labels, np.array([0, 1]), np.zeros(2, dtype=bool))
    expected = {"right": 1, "duplicate": 1, "place": 1, "class": 1, "both": 1, "background": 1, "missed": 1}
    assert dict(found) == expected
