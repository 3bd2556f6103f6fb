"""CPU seconds of scoring detections, beside those of faster-coco-eval and pycocotools.

    python packages/core/benchmarks/detection_scoring.py --coco128 FOLDER

Boxes drawn in the proportions of COCO: seven objects and about seventy detections in an image, 80 classes with a long
tail. `--coco128 FOLDER` takes coco128's images and boxes instead, and draws detections near them. One thread, one
process, rounds in turn, medians: the peers from their files to the score, ours also from the files, then reading the
results, matching them (four ranges of area, ten thresholds), the score, and 500 resamples of it. Writes
`results/detection_scoring.json` or `results/detection_scoring_coco128.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import faster_coco_eval
import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vfm.data.annotated import AnnotatedSource
from vfm.data.annotated.stages import Annotated
from vfm.eval.detection.detection_rules import GroundTruth, match_all
from vfm.eval.detection.detection_scores import DetectionScores
from vfm.eval.detection.detections import read_results
from vfm.interfaces import AnnotatedImages, Context

CLASSES, WIDTH, HEIGHT = 80, 640, 480
RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


def make(folder: Path, num_images: int) -> tuple[Path, Path]:
    """Write the truth and the results, and return their paths."""
    rng = np.random.default_rng(0)
    images = [{"id": n + 1, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(num_images)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, num_images + 1):
        for _ in range(rng.poisson(7)):
            box = draw_box(rng)
            label = int(rng.zipf(1.3) % CLASSES + 1)
            area = box[2] * box[3]
            one = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": box, "area": area}
            annotations.append({**one, "iscrowd": 0})
            if rng.random() < 0.8:
                near = [max(0.0, value + float(rng.normal(0, 0.05 * box[2]))) for value in box]
                near = [near[0], near[1], max(2.0, near[2]), max(2.0, near[3])]
                results.append({"image_id": image, "category_id": label, "bbox": near, "score": float(rng.beta(5, 2))})
        for _ in range(63):
            label = int(rng.integers(1, CLASSES + 1))
            score = float(rng.beta(1, 6))
            results.append({"image_id": image, "category_id": label, "bbox": draw_box(rng), "score": score})
    categories = [{"id": label, "name": str(label)} for label in range(1, CLASSES + 1)]
    truth, found = folder / "truth.json", folder / "results.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    found.write_text(json.dumps(results))
    return truth, found


def draw_box(rng: np.random.Generator) -> list[float]:
    width, height = np.exp(rng.normal(4, 0.8, 2)).clip(8, 400).tolist()
    return [float(rng.uniform(0, WIDTH - width)), float(rng.uniform(0, HEIGHT - height)), width, height]


def timed(function: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    return function(), round(time.process_time() - start, 4)


def faster(truth: Path, found: Path) -> float:
    known = faster_coco_eval.COCO(str(truth))
    evaluation = faster_coco_eval.COCOeval_faster(known, known.loadRes(str(found)), "bbox")
    evaluation.run()
    return float(evaluation.stats[0])


def official(truth: Path, found: Path) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        evaluation = COCOeval(known, known.loadRes(str(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def read(folder: Path, truth: Path) -> AnnotatedSource:
    (folder / "work").mkdir()
    stage = Annotated(kind="data.annotated", name="made", path=str(folder), annotations=str(truth), images=False)
    stage.run(Context("made", folder, folder / "work", {}))
    return AnnotatedSource(AnnotatedImages.load(folder))


def near_boxes(folder: Path, coco128: Path) -> tuple[Path, Path]:
    """Write the boxes of coco128, and detections near most of them and at other images' places."""
    rng = np.random.default_rng(0)
    images, annotations, results = [], [], []
    for file in sorted((coco128 / "images").glob("*.jpg")):
        width, height = Image.open(file).size
        images.append({"id": int(file.stem), "file_name": file.name, "width": width, "height": height})
        labels = coco128 / "boxes" / f"{file.stem}.txt"
        for line in labels.read_text().splitlines() if labels.exists() else ():
            number, *box = line.split()
            x, y, w, h = (np.array(box, dtype=float) * (width, height, width, height)).tolist()
            annotations.append(
                {"id": len(annotations) + 1, "image_id": int(file.stem), "category_id": int(number) + 1,
                 "bbox": [x - w / 2, y - h / 2, w, h], "area": w * h, "iscrowd": 0}
            )  # fmt: skip
    for annotation in annotations:
        identity = {key: annotation[key] for key in ("image_id", "category_id")}
        x, y, w, h = annotation["bbox"]
        if rng.random() < 0.85:
            shift = rng.normal(0, 0.05, 4) * (w, h, w, h)
            near = (np.array([x, y, w, h]) + shift).clip(0.5).tolist()
            results.append({**identity, "bbox": near, "score": float(rng.beta(5, 2))})
    for image in images:
        for _ in range(rng.poisson(3)):
            other = annotations[int(rng.integers(len(annotations)))]
            found = {"image_id": image["id"], "category_id": other["category_id"], "bbox": other["bbox"]}
            results.append({**found, "score": float(rng.beta(1, 6))})
    categories = [{"id": label, "name": str(label)} for label in range(1, CLASSES + 1)]
    truth, found_file = folder / "truth.json", folder / "results.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    found_file.write_text(json.dumps(results))
    return truth, found_file


def measure_once(truth: Path, found: Path) -> dict[str, float]:
    """Measure each tool once, and check that all scores are equal."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        score, plain = timed(lambda: faster(truth, found))
        other, slow = timed(lambda: official(truth, found))
        source, importing = timed(lambda: read(folder, truth))
        results, reading = timed(lambda: read_results(found, source))
        rows, matching = timed(lambda: list(match_all(results, GroundTruth.of(source, "coco"), "boxes", 100)))
        scores, point = timed(lambda: DetectionScores("boxes", rows, len(source), (), 500))
        ours = scores.scores()[0]
        _, resampling = timed(ours.interval)
    assert abs(ours.value - score) < 1e-12
    assert abs(ours.value - other) < 1e-12
    whole = importing + reading + matching + point
    return {
        "faster_coco_eval": plain,
        "pycocotools": slow,
        "importing_the_truth": importing,
        "reading_results": reading,
        "matching": matching,
        "score": point,
        "500_resamples": resampling,
        "without_resamples": whole,
        "whole": whole + resampling,
    }


def measure(num_images: int, coco128: Path | None, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        truth, found = near_boxes(Path(name), coco128) if coco128 else make(Path(name), num_images)
        measured = [measure_once(truth, found) for _ in range(rounds)]
        counts = {
            "images": len(json.loads(truth.read_text())["images"]),
            "detections": len(json.loads(found.read_text())),
        }
    medians = {key: round(statistics.median(times[key] for times in measured), 3) for key in measured[0]}
    peer = medians["faster_coco_eval"]
    ratios = {f"{key}_over_faster_coco_eval": round(medians[key] / peer, 2) for key in ("without_resamples", "whole")}
    machine = f"{platform.machine()}, one thread, CPU seconds, medians of {rounds}"
    return {**counts, **medians, **ratios, "machine": machine}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--coco128", type=Path, help="folder with images and boxes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    record = measure(options.images, options.coco128, options.rounds)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / ("detection_scoring_coco128.json" if options.coco128 else "detection_scoring.json")
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
