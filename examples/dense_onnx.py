"""Detect or segment with an exported model, without torch: python dense_onnx.py FOLDER IMAGE [--out DRAWN.png]

FOLDER is written by `vfm export MODEL --format onnx --out FOLDER`. It needs onnxruntime, numpy and pillow.
"""

from __future__ import annotations

import argparse
import colorsys
import json
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
    """Run the model on an image. Boxes are in its pixels, and a segmenter's `map` has the class of each."""
    facts = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession(str(folder / facts["file"]), providers=["CPUExecutionProvider"])
    pixels, scale = prepare(image, facts)
    outputs = dict(zip(facts["outputs"], session.run(None, {"pixels": pixels}), strict=True))
    if "boxes" in outputs:
        outputs["boxes"] = (outputs["boxes"] / scale).clip(0, image.size * 2)
        return outputs | {"names": facts["class_names"]}
    scores = outputs["scores"][0]  # (K, h, w)
    height, width = (round(size * scale * scores.shape[1] / facts["image_size"]) for size in image.size[::-1])
    part = scores[:, : max(1, height), : max(1, width)]
    larger = [np.asarray(Image.fromarray(row).resize(image.size, Image.Resampling.BILINEAR)) for row in part]
    return outputs | {"names": facts["class_names"], "map": np.argmax(larger, axis=0)}


def draw(image: Image.Image, found: dict, min_score: float) -> Image.Image:
    """Draw boxes with names, or tint the pixels of each class."""
    count = len(found["names"])
    colors = [tuple(int(255 * part) for part in colorsys.hsv_to_rgb(label / count, 0.8, 0.9)) for label in range(count)]
    drawn = image.convert("RGB")
    if "map" in found:
        tint = Image.fromarray(np.array(colors, dtype=np.uint8)[found["map"]])
        return Image.blend(drawn, tint, 0.5)
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
