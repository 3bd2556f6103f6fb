"""A made dataset with detections, in COCO's and LVIS' files, for comparisons with the official tools."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotated_world import read
from vfm.data.annotated import AnnotatedSource

WIDTH, HEIGHT = 200, 150
CLASSES = (1, 3, 7)


@dataclass(frozen=True)
class DetectionWorld:
    """Files of truth and results, and the dataset that was read from the truth."""

    truth: Path
    results: Path
    source: AnnotatedSource


def outline(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x + w / 2, y + h, x, y + h / 2]]


def random_box(rng: np.random.Generator) -> list[float]:
    w, h = rng.integers(8, 130), rng.integers(8, 130)
    return [float(rng.integers(0, WIDTH - w)), float(rng.integers(0, HEIGHT - h)), float(w), float(h)]


def moved(box: list[float], rng: np.random.Generator) -> list[float]:
    x, y, w, h = (value + float(rng.normal() * 6) for value in box)
    x, y = min(max(0.0, x), WIDTH - 12), min(max(0.0, y), HEIGHT - 12)
    return [x, y, min(max(4.0, w), WIDTH - x), min(max(4.0, h), HEIGHT - y)]


def make_world(folder: Path, seed: int, *, lvis: bool = False, images: int = 24, most: int = 4) -> DetectionWorld:
    """Draw pictures in no order of their ids, objects (some of them crowds), and detections with many equal scores."""
    rng = np.random.default_rng(seed)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number in (rng.permutation(images) + 1).tolist():
        one: dict[str, Any] = {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
        present = set()
        for _ in range(int(rng.integers(0, 7))):
            box, category = random_box(rng), int(rng.choice(CLASSES, p=[0.6, 0.3, 0.1]))
            present.add(category)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3] * float(rng.uniform(0.5, 1)),
                    "segmentation": outline(box),
                    "iscrowd": int(not lvis and rng.random() < 0.1),
                }
            )
            for _ in range(int(rng.integers(0, most))):
                found = moved(box, rng) if rng.random() < 0.85 else random_box(rng)
                label = category if rng.random() < 0.8 else int(rng.choice(CLASSES))
                results.append(
                    {"image_id": number, "category_id": label, "bbox": found, "score": round(rng.random(), 1)}
                )
        if lvis:
            absent = [category for category in CLASSES if category not in present]
            one["neg_category_ids"] = [category for category in absent if rng.random() < 0.6]
            one["not_exhaustive_category_ids"] = [category for category in present if rng.random() < 0.3]
        listed.append(one)
    for crowd in annotations:
        if crowd["iscrowd"]:
            x, y, w, h = (int(value) for value in crowd["bbox"])
            mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
            mask[y : y + h, x : x + w] = True
            flat = mask.T.ravel()
            edges = (np.flatnonzero(np.diff(flat)) + 1).tolist()
            runs = np.diff([0, *edges, len(flat)]).tolist()
            crowd["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs}
    categories = [{"id": one, "name": f"c{one}", "frequency": group} for one, group in zip(CLASSES, "fcr", strict=True)]
    record = {"info": {}, "images": listed, "annotations": annotations, "categories": categories}
    truth, file = folder / "set/truth.json", folder / "results.json"
    truth.parent.mkdir(parents=True)
    truth.write_text(json.dumps(record))
    file.write_text(json.dumps(results))
    data = read(folder, folder / "set", annotations=str(truth), images=False, max_bad_fraction=0.0)
    return DetectionWorld(truth, file, AnnotatedSource(data))


def as_masks(world: DetectionWorld) -> Path:
    """Write the results with masks only."""
    found = [
        {**{k: v for k, v in one.items() if k != "bbox"}, "segmentation": outline(one["bbox"])}
        for one in json.loads(world.results.read_text())
    ]
    path = world.results.with_name("masks.json")
    path.write_text(json.dumps([{**one, "segmentation": encoded(one["segmentation"])} for one in found]))
    return path


def encoded(polygons: list[list[float]]) -> dict[str, Any]:
    from pycocotools import mask

    found = mask.merge(mask.frPyObjects(polygons, HEIGHT, WIDTH))
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


@contextlib.contextmanager
def silent() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
