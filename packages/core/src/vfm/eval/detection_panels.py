"""Pictures with true and predicted objects side by side, the worst ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vfm.data import BadSample
from vfm.data.annotated import AnnotatedSource, decode_mask
from vfm.data.annotated.panels import overlay, palette
from vfm.eval.dense_panels import GAP, NUM_PICTURES, join, whole_factor
from vfm.eval.detection_errors import MIN_SCORE
from vfm.eval.detections import Detections
from vfm.panels import ImagesPanel, Picture
from vfm.stage import Context

SHOWN_SIDE = 320


def add_detection_panels(
    ctx: Context, source: AnnotatedSource, found: Mapping[str, Detections], errors: Mapping[int, Counter[str]]
) -> None:
    """Write the pictures with the most errors (those of the first model): true objects, then each model's."""
    pictures: list[Picture] = []
    for number in worst_images(errors)[:NUM_PICTURES]:
        try:
            picture = source.picture(number)
        except BadSample:
            continue
        objects = source.objects(number)
        shown = [draw_objects(picture, objects.labels, objects.boxes, objects.counts, source.dataset.class_names)]
        for one in found.values():
            kept = one[(one.image == number) & (one.scores >= MIN_SCORE)]
            shown.append(
                draw_objects(picture, kept.labels, kept.boxes, kept.counts, source.dataset.class_names, kept.scores)
            )
        file = f"panels/objects-{len(pictures)}.jpg"
        (ctx.directory / "panels").mkdir(parents=True, exist_ok=True)
        join(shown, SHOWN_SIDE).save(ctx.directory / file, quality=90)
        pictures.append(Picture(file=file, caption=source.keys[number]))
    note = f"True objects, then those of {', '.join(found)} with a score of {MIN_SCORE} or more."
    width = (1 + len(found)) * (SHOWN_SIDE + GAP) // 2
    ctx.panel(ImagesPanel(title="Worst pictures", note=note, order=40, pictures=pictures, width=width))


def worst_images(errors: Mapping[int, Counter[str]]) -> list[int]:
    """Return the images by the number of wrong detections and missed objects in them, most first."""
    return sorted(errors, key=lambda image: errors[image]["right"] - sum(errors[image].values()))


def draw_objects(
    picture: Image.Image,
    labels: NDArray[np.int64],
    boxes: NDArray[np.float64],
    counts: Sequence[bytes | None],
    class_names: Sequence[str],
    scores: NDArray[np.float64] | None = None,
) -> Image.Image:
    """Return a picture with masks tinted by class, boxes, and the names of the classes with their scores.

    Small pictures are enlarged first, so that the names can be read.
    """
    colours = palette(max(2, len(class_names)))
    segments = np.full(picture.size[::-1], -1, dtype=np.int64)
    for label, mask in zip(labels.tolist(), counts, strict=True):
        if mask is not None:
            segments[decode_mask(mask, picture.height, picture.width)] = label
    factor = whole_factor(picture.size, SHOWN_SIDE)
    drawn = overlay(picture, segments, colours)
    drawn = drawn.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
    corners = np.clip(factor * boxes, 0, (drawn.size * 2)) if len(boxes) else boxes
    corners[:, 2:] = np.maximum(corners[:, :2], corners[:, 2:])
    pen = ImageDraw.Draw(drawn)
    for place, (label, box) in enumerate(zip(labels.tolist(), corners.tolist(), strict=True)):
        colour = tuple(colours[label].tolist())
        pen.rectangle(box, outline=colour, width=max(1, max(drawn.size) // 300))
        score = "" if scores is None else f" {scores[place]:.2f}"
        pen.text((box[0] + 2, box[1] + 1), class_names[label] + score, fill=colour)
    return drawn
