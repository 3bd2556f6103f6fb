"""Detect or segment with an exported model, without torch: python dense_onnx.py FOLDER IMAGE [--out DRAWN.png]

FOLDER is written by `vfm export MODEL --format onnx --out FOLDER`. It needs onnxruntime, numpy and pillow.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw


def prepare(image: Image.Image, facts: dict) -> tuple[np.ndarray, float]:
    """Resize the longest side to the model's, normalise and pad. Returns pixels (1, 3, S, S) and the scale."""
    side = facts["image_size"]
    scale = side / max(image.size)
    width, height = (min(side, max(1, round(length * scale))) for length in image.size)
    resized = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    pixels = np.zeros((1, 3, side, side), dtype=np.float32)  # padding has the mean colour
    normalised = (resized / 255 - np.float32(facts["mean"])) / np.float32(facts["std"])
    pixels[0, :, :height, :width] = normalised.transpose(2, 0, 1)
    return pixels, scale


def run(folder: Path, image: Image.Image) -> dict:
    """Run the model on an image. Boxes and masks are in its pixels, and `map` has the class of each pixel."""
    facts = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession(str(folder / facts["file"]), providers=["CPUExecutionProvider"])
    pixels, scale = prepare(image, facts)
    outputs = dict(zip(facts["outputs"], session.run(None, {"pixels": pixels}), strict=True))
    if "boxes" in outputs:
        outputs["boxes"] = (outputs["boxes"] / scale).clip(0, image.size * 2)
        return outputs | {"names": facts["class_names"]}
    full_size = partial(enlarge, image.size, scale / facts["image_size"])
    if "semantic" not in facts["tasks"]:  # objects alone
        return objects(outputs["classes"][0, :, :-1], full_size(outputs["masks"][0])) | {"names": facts["class_names"]}
    return outputs | {"names": facts["class_names"], "map": np.argmax(full_size(outputs["scores"][0]), axis=0)}


def enlarge(size: tuple[int, int], scale: float, maps: np.ndarray) -> np.ndarray:
    """Cut the padding off maps (N, h, w), and enlarge them to an image (N, H, W). `scale` is 1 / side in its pixels."""
    height, width = (max(1, round(length * scale * maps.shape[1])) for length in size[::-1])
    part = maps[:, :height, :width]
    return np.stack([np.asarray(Image.fromarray(row).resize(size, Image.Resampling.BILINEAR)) for row in part])


def objects(classes: np.ndarray, masks: np.ndarray) -> dict:
    """Turn the class probabilities (Q, K) and mask scores (Q, H, W) of queries into objects, best first."""
    inside = masks > 0
    mean_inside = (inside / (1 + np.exp(-masks))).sum(axis=(1, 2)) / inside.sum(axis=(1, 2)).clip(1)
    scores = classes * mean_inside[:, None]
    best = np.argsort(-scores, axis=None)[:100]
    queries, labels = np.unravel_index(best[scores.ravel()[best] > 0], scores.shape)
    boxes = [box_of(inside[query]) for query in queries]
    return {"labels": labels, "scores": scores[queries, labels], "boxes": np.array(boxes), "inside": inside[queries]}


def box_of(mask: np.ndarray) -> list[int]:
    """Find the left, top, right and bottom of a mask."""
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def draw(image: Image.Image, found: dict, min_score: float) -> Image.Image:
    """Draw boxes with names and tint the pixels of masks, or tint the pixels of each class."""
    count = len(found["names"])
    colors = [tuple(int(255 * part) for part in colorsys.hsv_to_rgb(label / count, 0.8, 0.9)) for label in range(count)]
    drawn = image.convert("RGB")
    if "map" in found:
        tint = Image.fromarray(np.array(colors, dtype=np.uint8)[found["map"]])
        return Image.blend(drawn, tint, 0.5)
    for mask, score, label in zip(found.get("inside", ()), found["scores"], found["labels"], strict=False):
        if score >= min_score:
            tint = Image.blend(drawn, Image.new("RGB", drawn.size, colors[label]), 0.5)
            drawn.paste(tint, mask=Image.fromarray(mask))
    pen = ImageDraw.Draw(drawn)
    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
        if score >= min_score:
            pen.rectangle(box.tolist(), outline=colors[label], width=2)
            pen.text((box[0] + 3, box[1] + 1), f"{found['names'][label]} {score:.2f}", fill=colors[label])
    return drawn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, default=Path("drawn.png"))
    parser.add_argument("--min-score", type=float, default=0.3)
    arguments = parser.parse_args()
    source = Image.open(arguments.image)
    draw(source, run(arguments.folder, source), arguments.min_score).save(arguments.out)
