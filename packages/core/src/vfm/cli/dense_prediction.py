"""The output of `vfm predict` for models with a dense head: lists, pictures and COCO's results. Imports torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vfm.api.dense import find
from vfm.api.inputs import open_device, read_images
from vfm.base import UserError
from vfm.cli.command import show
from vfm.data.annotated import as_rle, encode_mask
from vfm.eval.dense.predictor import Instances
from vfm.interfaces import DenseCheckpoint

RESULTS_FILE = "results.json"


def predict_dense(
    checkpoint: DenseCheckpoint, files: Sequence[Path], device: str, *, out: Path | None, min_score: float
) -> None:
    """List what a model finds in images, one after another, and draw it.

    Args:
        checkpoint: the model.
        files: of the images.
        device: that the model runs on.
        out: folder for a picture of each image and the objects' json; None: only list.
        min_score: smallest score of an object that is listed and drawn; the json has all of them.

    Raises:
        UserError: `out` is a file, an image cannot be read, or the model fails to load.
    """
    images = read_images(files)
    if out and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder, got a file")
    ids = image_ids(files)
    records: list[dict[str, Any]] = []
    for place, (file, image, found) in enumerate(
        zip(files, images, find(checkpoint, images, open_device(device)), strict=True)
    ):
        show(str(file))
        rows = found.rows(min_score)
        if not rows:
            show(f"  no object with a score of at least {min_score:g}" if found.objects else "  no region")
        for row in rows:
            if found.objects:
                box = " ".join(f"{row[side]:.0f}" for side in ("left", "top", "right", "bottom"))
                show(f"  {row['score']:6.3f}  {row['label']}  {box}")
            else:
                show(f"  {100 * row['share']:5.1f} %  {row['label']}")
        if found.objects:
            records += coco_results(found.objects, ids[place], str(file), checkpoint.class_names)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            repeated = [other.stem for other in files].count(file.stem) > 1
            target = out / f"{file.stem}{f'-{place}' if repeated else ''}.png"
            found.drawn(image, min_score).save(target)
            show(f"  {target}")
    if out and "boxes" in checkpoint.tasks:
        (out / RESULTS_FILE).write_text(json.dumps(records) + "\n", encoding="utf-8")
        show(f"{out / RESULTS_FILE}: {len(records):,} objects")


def coco_results(found: Instances, image_id: int, file: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects of an image in COCO's results format; `category_id` is the label, from 0."""
    records: list[dict[str, Any]] = []
    for row, (left, top, right, bottom) in enumerate(found.boxes.tolist()):
        label = int(found.labels[row])
        record: dict[str, Any] = {
            "image_id": image_id,
            "file_name": file,
            "category_id": label,
            "category": names[label],
            "score": float(found.scores[row]),
            "bbox": [left, top, right - left, bottom - top],
        }
        if found.masks is not None:
            height, width = found.masks[row].shape
            counts = encode_mask(found.masks[row])
            record["segmentation"] = {**as_rle(counts, height, width), "counts": counts.decode()}
        if found.maskness is not None:
            record["maskness"] = float(found.maskness[row])
        records.append(record)
    return records


def image_ids(files: Sequence[Path]) -> list[int]:
    """Return the number that each file's name is, or else its place; the places of all where two would be equal."""
    ids = [int(file.stem) if file.stem.isdecimal() and len(file.stem) < 16 else n for n, file in enumerate(files)]
    return ids if len(set(ids)) == len(ids) else list(range(len(files)))
