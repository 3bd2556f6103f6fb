"""The work of `vfm predict` for models with a dense head: lists, pictures and COCO's results. Imports torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vfm.artifacts import DenseCheckpoint
from vfm.cli.command import show
from vfm.config import UserError
from vfm.data.annotated import as_rle, encode_mask
from vfm.data.annotated.panels import overlay, palette
from vfm.eval.dense_models import load_predictor
from vfm.eval.detection_panels import draw_objects
from vfm.eval.sliding_windows import predict_labels
from vfm.interfaces.dense import DensePredictor, Instances

RESULTS_FILE = "results.json"


def predict_dense(
    checkpoint: DenseCheckpoint,
    files: Sequence[Path],
    images: Sequence[Image.Image],
    device: torch.device,
    *,
    out: Path | None,
    min_score: float,
) -> None:
    """List what a model finds in images, one after another, and draw it.

    Args:
        checkpoint: the model.
        files: of the images.
        images: the images.
        device: that the model runs on.
        out: folder for a picture of each image and the objects' json; None: only list.
        min_score: smallest score of an object that is listed and drawn; the json has all of them.

    Raises:
        UserError: `out` is a file, or the model fails to load.
    """
    if out and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder, got a file")
    predictor, names = load_predictor(checkpoint, device), checkpoint.class_names
    records: list[dict[str, Any]] = []
    for place, (file, image) in enumerate(zip(files, images, strict=True)):
        show(str(file))
        if "boxes" in checkpoint.tasks:
            (found,) = predictor.detect([image])
            kept = np.flatnonzero(found.scores >= min_score)
            for row in kept.tolist():
                box = " ".join(f"{value:.0f}" for value in found.boxes[row])
                show(f"  {found.scores[row]:6.3f}  {names[found.labels[row]]}  {box}")
            records += coco_results(found, _image_id(file, place), str(file), names)
            masks = None if found.masks is None else found.masks[kept]
            counts = [None] * len(kept) if masks is None else [encode_mask(mask) for mask in masks]
            drawn = draw_objects(image, found.labels[kept], found.boxes[kept], counts, names, found.scores[kept])
        else:
            drawn, shares = _draw_segments(checkpoint, predictor, image)
            for label in np.argsort(-shares, kind="stable").tolist():
                if shares[label]:
                    show(f"  {100 * shares[label]:5.1f} %  {names[label]}")
        if out:
            out.mkdir(parents=True, exist_ok=True)
            repeated = [other.stem for other in files].count(file.stem) > 1
            target = out / f"{file.stem}{f'-{place}' if repeated else ''}.png"
            drawn.save(target)
            show(f"  {target}")
    if out and records:
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


def _draw_segments(
    checkpoint: DenseCheckpoint, predictor: DensePredictor, image: Image.Image
) -> tuple[Image.Image, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the picture tinted by class, and the share of the pixels of each class."""
    if "semantic" in checkpoint.tasks:
        labels = predict_labels(image, predictor.crop_logits, checkpoint.image_size)
    else:
        (found,) = predictor.segment_all([image])
        labels = np.append(found.labels, -1)[found.segments]
    count = len(checkpoint.class_names)
    shares = np.bincount(labels[labels >= 0], minlength=count) / labels.size
    return overlay(image, labels, palette(max(2, count))), shares


def _image_id(file: Path, place: int) -> int:
    return int(file.stem) if file.stem.isdecimal() and len(file.stem) < 16 else place
