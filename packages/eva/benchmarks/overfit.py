"""Overfit a detector with masks on 32 COCO images, and print AP on the same images, to test that all parts learn.

The tar has COCO's first 128 images in Ultralytics' layout (images/*.jpg, polygons/*.txt). The images whose smallest
object is largest are selected, since the detector sees them at 128 pixels. Crowds have no polygons there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench import context, report
from PIL import Image

from vfm.data.annotated.stages import Annotated
from vfm.eval.dense.stages import Detection
from vfm.models import build_vision, save_vision
from vfm.plugin import AnnotatedImages, Artifact, DenseCheckpoint, Event
from vfm_eva.dense.detect.stages import EvaDetect

SIDE = 128


def write_coco(tar: Path, folder: Path, count: int) -> Path:
    """Write the selected images and COCO's json for them, and return the path of the json."""
    with tarfile.open(tar) as archive:
        archive.extractall(folder, filter="data")
    (root,) = [path for path in folder.iterdir() if path.is_dir()]
    names = dict(re.findall(r"^\s+(\d+): (.+)$", (root / "semantic_classes.yaml").read_text(), re.MULTILINE))
    scored: list[tuple[float, Path, list[list[float]]]] = []
    for file in sorted((root / "polygons").glob("*.txt")):
        lines = [[float(word) for word in line.split()] for line in file.read_text().splitlines()]
        sides = [min(max(one[1::2]) - min(one[1::2]), max(one[2::2]) - min(one[2::2])) for one in lines]
        if sides:
            scored.append((min(sides), file, lines))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (_, file, lines) in enumerate(sorted(scored, key=lambda one: -one[0])[:count], start=1):
        width, height = Image.open(root / "images" / f"{file.stem}.jpg").size
        images.append({"id": number, "file_name": f"{file.stem}.jpg", "width": width, "height": height})
        for label, *points in lines:
            polygon = [value * (height if place % 2 else width) for place, value in enumerate(points)]
            left, top = min(polygon[::2]), min(polygon[1::2])
            box = [left, top, max(polygon[::2]) - left, max(polygon[1::2]) - top]
            facts = {"id": len(annotations) + 1, "image_id": number, "category_id": int(label), "iscrowd": 0}
            annotations.append({**facts, "bbox": box, "segmentation": [polygon], "area": box[2] * box[3]})
    present = sorted({one["category_id"] for one in annotations})
    categories = [{"id": label, "name": names[str(label)].strip("'\"")} for label in present]
    file = root / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def train_and_score(root: Path, data: AnnotatedImages, steps: int, start: Path | None) -> dict[str, float]:
    if start:
        given: Artifact = DenseCheckpoint.load(start)
    else:
        given = save_vision(build_vision("eva02_pico_patch8_64", num_classes=0, seed=0), root / "encoder")
    heads = {"num_rois": 32, "positive_fraction": 0.5, "num_convs": 0, "hidden": 128, "mask_convs": 2}
    config = EvaDetect.model_validate(
        {
            "name": "detector", "start" if start else "encoder": "given", "data": "data", "steps": steps,
            "global_batch_size": 4,
            "lr": 2e-3, "trained": {"layer_decay": 1.0}, "schedule": {"type": "steps", "warmup_steps": min(20, steps)},
            "optimizer": {"type": "adamw", "weight_decay": 0.0, "grad_clip_norm": 1.0}, "log_every": 50,
            "augmentation": {"scale": [1.0, 1.0], "flip": 0.0}, "runtime": {"threads": 1},
            "detector": {
                "image_size": SIDE, "channels": 32, "cascade": heads,
                "proposals": {"num_convs": 1, "num_samples": 128, "before_nms": 200, "num_proposals": 100},
            },
        }
    )  # fmt: skip

    def send(event: Event) -> None:
        if event.type == "metrics":
            values = {key: round(value, 3) for key, value in event.data["values"].items() if "loss" in key}
            print(event.data["step"], values, flush=True)

    ctx = context(root / "detector", given=given, data=data)
    ctx.send = send
    detector = config.run(ctx)
    ruler = Detection.model_validate({"name": "ap", "models": ["detector"], "data": "data", "num_resamples": 100})
    report = ruler.run(context(root / "ap", detector=detector, data=data))
    return {metric.name: 100 * metric.value for metric in report.metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="tar of COCO's first 128 images with polygons")
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--start", type=Path, help="detector to start from, copied by --keep")
    parser.add_argument("--keep", type=Path, help="folder to copy the detector to, for vfm predict")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        file = write_coco(options.data, root / "tar", options.pictures)
        stage = Annotated.model_validate(
            {"name": "data", "path": str(file.parent / "images"), "annotations": str(file), "format": "coco"}
        )
        data = stage.run(context(root / "data"))
        found = train_and_score(root, data, options.steps, options.start)
        if options.keep:
            shutil.copytree(root / "detector" / "artifact", options.keep)
    shown = {
        name: round(value, 1) for name, value in found.items() if name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
    }
    lines = [
        f"{options.pictures} pictures, {data.num_objects} objects, {SIDE} pixels, {options.steps}"
        f" {'more steps' if options.start else 'steps'} of 4;"
        f" {time.process_time() - start:.0f} CPU seconds",
        "",
        "| box AP | box AP50 | mask AP | mask AP50 |",
        "|---|---|---|---|",
        "| " + " | ".join(f"{shown[name]:.1f}" for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")) + " |",
    ]
    report(shown, "\n".join(lines), options.out)


if __name__ == "__main__":
    main()
