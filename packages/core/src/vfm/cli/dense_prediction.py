"""Print and write predictions of a model with a dense head, for `vfm predict`. Imports torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from vfm.api.dense import find
from vfm.api.inputs import open_device, readable_images
from vfm.base import UserError
from vfm.cli.command import note, show
from vfm.data.annotated import as_rle, encode_mask
from vfm.eval.dense.predictor import Instances
from vfm.interfaces import DenseCheckpoint

RESULTS_FILE = "results.json"


def predict_dense(
    checkpoint: DenseCheckpoint, paths: Sequence[Path], device: str, *, out: Path | None, min_score: float
) -> None:
    """List the predictions of a model for images, one after another, and draw them.

    Args:
        checkpoint: The model.
        paths: Image files, or folders of them.
        device: Device of the model.
        out: Folder for a drawing of each image and the json of all objects. None: only list.
        min_score: Smallest score of an object to list and draw. The json has all objects.

    Raises:
        UserError: If `out` is a file, an image cannot be read, or the model fails to load.
    """
    listed, images = readable_images(paths, note)
    files = cast("list[Path]", listed)
    if out and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder, got a file")
    ids = image_ids(files)
    stems = Counter(file.stem for file in files)
    records: list[dict[str, Any]] = []
    predictions = find(checkpoint, images, open_device(device))
    for number, (file, image, prediction) in enumerate(zip(files, images, predictions, strict=True)):
        show(str(file))
        rows = prediction.rows(min_score)
        if not rows:
            show(f"  no object with a score of at least {min_score:g}" if prediction.objects else "  no region")
        for row in rows:
            if prediction.objects:
                box = " ".join(f"{row[side]:.0f}" for side in ("left", "top", "right", "bottom"))
                show(f"  {row['score']:6.3f}  {row['label']}  {box}")
            else:
                show(f"  {100 * row['share']:5.1f} %  {row['label']}")
        if prediction.objects:
            records += coco_results(prediction.objects, ids[number], str(file), checkpoint.class_names)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            # Files of the same name in several folders must not overwrite each other.
            suffix = f"-{number}" if stems[file.stem] > 1 else ""
            target = out / f"{file.stem}{suffix}.png"
            prediction.drawn(image, min_score).save(target)
            show(f"  {target}")
    if out and "boxes" in checkpoint.tasks:
        (out / RESULTS_FILE).write_text(json.dumps(records) + "\n", encoding="utf-8")
        show(f"{out / RESULTS_FILE}: {len(records):,} objects")


def coco_results(objects: Instances, image_id: int, file: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Convert the objects of an image to COCO's results format. `category_id` is the label, from 0.

    Args:
        objects: Detected objects.
        image_id: Id of the image.
        file: Name of the image.
        names: Names of the classes.
    """
    records: list[dict[str, Any]] = []
    for row, (left, top, right, bottom) in enumerate(objects.boxes.tolist()):
        label = int(objects.labels[row])
        record: dict[str, Any] = {
            "image_id": image_id,
            "file_name": file,
            "category_id": label,
            "category": names[label],
            "score": float(objects.scores[row]),
            "bbox": [left, top, right - left, bottom - top],
        }
        if objects.masks is not None:
            height, width = objects.masks[row].shape
            counts = encode_mask(objects.masks[row])
            record["segmentation"] = {**as_rle(counts, height, width), "counts": counts.decode()}
        if objects.maskness is not None:
            record["maskness"] = float(objects.maskness[row])
        records.append(record)
    return records


def image_ids(files: Sequence[Path]) -> list[int]:
    """Choose image ids.

    A file name that is a number is the id. Otherwise, and on duplicates, all images are numbered in the order given.
    """
    ids = []
    for number, file in enumerate(files):
        is_number = file.stem.isdecimal() and len(file.stem) < 16
        ids.append(int(file.stem) if is_number else number)
    if len(set(ids)) == len(ids):
        return ids
    return list(range(len(files)))
