"""Draw masks, boxes and class names with scores on images."""

# N objects, H and W height and width of an image

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vfm.data.annotated import decode_mask
from vfm.data.annotated.panels import overlay, palette
from vfm.eval.dense.dense_panels import whole_factor
from vfm.eval.dense.image_text import Font, text_size, write_name

SHOWN_SIDE = 320  # pixels of the longer side
SMALLEST_TEXT = 10  # pixels
TEXT_SHARE = 36  # part of the longer side, so that names can be read in an image that is shown at half its size


def draw_objects(
    image: Image.Image,
    labels: NDArray[np.int64],
    boxes: NDArray[np.float64],
    counts: Sequence[bytes | None],
    class_names: Sequence[str],
    scores: NDArray[np.float64] | None = None,
) -> Image.Image:
    """Draw objects on an image.

    Small images are enlarged first, so that the names can be read. Small masks are drawn over large ones. Where names
    overlap, the object that comes first is on top.

    Args:
        image: RGB.
        labels: Class of each object, (N,).
        boxes: Left, top, right, bottom in pixels, (N, 4).
        counts: Masks in COCO's compressed form. Objects without a mask have None.
        class_names: Names of all classes.
        scores: (N,), written after the names.
    """
    colours = palette(max(2, len(class_names)))
    factor = whole_factor(image.size, SHOWN_SIDE)
    tinted = _tint(image, labels, counts, colours)
    drawn = tinted.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    corners = np.clip(factor * boxes, 0, (drawn.size * 2)) if len(boxes) else boxes
    corners[:, 2:] = np.maximum(corners[:, :2], corners[:, 2:])  # Pillow rejects boxes with negative sides
    pen = ImageDraw.Draw(drawn)
    for label, box in zip(labels.tolist(), corners.tolist(), strict=True):
        pen.rectangle(box, outline=tuple(colours[label].tolist()), width=max(1, max(drawn.size) // 300))
    font = ImageFont.load_default(size=max(SMALLEST_TEXT, max(drawn.size) / TEXT_SHARE))
    for row in reversed(range(len(labels))):
        score = "" if scores is None else f" {scores[row]:.2f}"
        _write(pen, drawn.size, corners[row], class_names[labels[row]] + score, colours[labels[row]], font)
    return drawn


def _tint(
    image: Image.Image, labels: NDArray[np.int64], counts: Sequence[bytes | None], colours: NDArray[np.uint8]
) -> Image.Image:
    """Tint masks in the colours of their classes, with outlines that separate objects of the same class."""
    decoded = []
    for label, mask_counts in zip(labels.tolist(), counts, strict=True):
        if mask_counts is not None:
            decoded.append((label, decode_mask(mask_counts, image.height, image.width)))
    segments = np.full(image.size[::-1], -1, dtype=np.int64)
    outlines = segments.copy()
    for label, mask in sorted(decoded, key=lambda item: -int(item[1].sum())):
        segments[mask] = label
        outlines[mask] = -1
        outlines[mask & ~_inner(mask)] = label
    pixels = np.asarray(overlay(image, segments, colours)).copy()
    pixels[outlines >= 0] = colours[outlines[outlines >= 0]]
    return Image.fromarray(pixels)


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Select the pixels of a mask, (H, W), whose four neighbours are in it too."""
    framed = np.pad(mask, 1)
    return np.asarray(framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:])


def _write(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: NDArray[np.float64],
    text: str,
    colour: NDArray[np.uint8],
    font: Font,
) -> None:
    """Write a name above a box, or inside it if there is no room, so that it is never cut off."""
    width, height = text_size(pen, text, font)
    x = max(0, min(int(box[0]), size[0] - width - 1))
    y = int(box[1]) - height if box[1] >= height else 0
    write_name(pen, (x, y), text, colour, font)
