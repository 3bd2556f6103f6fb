"""CPU seconds of scoring detections beside its peers: python packages/core/benchmarks/detection_scoring.py

Made boxes in the proportions of COCO: seven objects and about seventy detections in a picture, 80 classes with a long
tail. One thread, one process: faster-coco-eval and pycocotools, each from its files to the score, then reading the same
results, matching them (four ranges of area, ten thresholds), the score, and 500 resamples of it. Writes
`results/detection_scoring.json`. About twenty CPU seconds for 1,000 pictures (`--images`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import faster_coco_eval
import numpy as np
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
    return function(), round(time.process_time() - start, 2)


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


def measure(num_images: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth, found = make(folder, num_images)
        score, plain = timed(lambda: faster(truth, found))
        other, slow = timed(lambda: official(truth, found))
        source, importing = timed(lambda: read(folder, truth))
        results, reading = timed(lambda: read_results(found, source))
        rows, matching = timed(lambda: list(match_all(results, GroundTruth.of(source, "coco"), "boxes", 100)))
        scores, point = timed(lambda: DetectionScores("boxes", rows, num_images, (), 500))
        ours = scores.scores()[0]
        _, resampling = timed(ours.interval)
    assert abs(ours.value - score) < 1e-12
    assert abs(ours.value - other) < 1e-12
    whole = round(importing + reading + matching + point + resampling, 2)
    return {
        "images": num_images,
        "detections": len(results),
        "faster_coco_eval": plain,
        "pycocotools": slow,
        "importing_the_truth": importing,
        "reading_results": reading,
        "matching": matching,
        "score": point,
        "500_resamples": resampling,
        "whole": whole,
        "whole_over_faster_coco_eval": round(whole / plain, 2),
        "machine": f"{platform.machine()}, one thread, CPU seconds",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    record = measure(parser.parse_args().images)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "detection_scoring.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
