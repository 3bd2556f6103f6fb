"""Large-scale jitter, flip and photometric distortion of an image with its boxes and masks.

torchvision's classes draw from torch's global generator, which cannot be resumed sample by sample. Here draws are
values, and applying them is a pure function. The image is resized and cropped in one step, and a mask is decoded only
if it reaches into the crop, so that a large scale costs no more than its crop.
"""

# H, W height and width of an image, h, w of its part in the crop, S side of the crop, N objects

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vfm.data import FILTERS, Interpolation, to_tensor
from vfm.data.annotated import ObjectArrays, decode_mask

__all__ = [
    "MIN_SIDE", "PAD", "Distortion", "Placement", "Targets", "distort", "draw_distortion", "draw_placement",
    "place_image", "place_objects", "place_whole", "whole",
]  # fmt: skip

MIN_SIDE = 1.0  # pixels; a box with a shorter side is dropped, as torchvision's SanitizeBoundingBoxes does
PAD = (128, 128, 128)  # grey of the area beyond a small image, as in detectron2


@dataclass(frozen=True)
class Placement:
    """Geometry of a crop.

    The image is resized, flipped, cropped, and padded on the right and below.

    Attributes:
        source: Width and height of the image.
        resized: Width and height of the whole image after the resize.
        corner: Left and top of the crop in the resized image.
        side: Side of the crop in pixels, S.
        flip: Whether left and right are exchanged.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    side: int
    flip: bool = False

    @property
    def covered(self) -> tuple[int, int]:
        """Width and height of the part of the crop that the image covers, (w, h)."""
        (width, height), (left, top) = self.resized, self.corner
        return min(self.side, width - left), min(self.side, height - top)

    @property
    def _region(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop in the resized image before the flip."""
        (left, top), (w, h) = self.corner, self.covered
        if self.flip:
            left = self.resized[0] - left - w
        return left, top, left + w, top + h

    @property
    def scale(self) -> tuple[float, float]:
        """Resize factors along width and height."""
        return self.resized[0] / self.source[0], self.resized[1] / self.source[1]


@dataclass(frozen=True)
class Targets:
    """The objects in a crop.

    Labels are (N,), boxes (N, 4) as left, top, right, bottom, and masks (N, S, S) or None.
    """

    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Distortion:
    """Factors of a photometric distortion.

    A factor is None where it is not applied. The hue is shifted by a fraction of a full turn.
    """

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    contrast_first: bool = True


def draw_placement(
    source: tuple[int, int], side: int, scale: tuple[float, float], flip: float, rng: np.random.Generator
) -> Placement:
    """Draw a large-scale jitter (Ghiasi et al. 2020, arXiv:2012.07177). Sizes are rounded as in torchvision.

    Args:
        source: Width and height of the image.
        side: Side of the crop in pixels, S.
        scale: Smallest and largest size, as factors of the size at which the whole image just fits the crop.
        flip: Probability of a left-right flip.
        rng: Random generator, from which four numbers are drawn.
    """
    # All numbers at once, so that each keeps its meaning whatever the others are.
    at, left, top, turn = rng.random(4).tolist()
    factor = min(side / source[0], side / source[1]) * (scale[0] + (scale[1] - scale[0]) * at)
    width, height = (max(1, int(length * factor)) for length in source)
    corner = round(left * max(0, width - side)), round(top * max(0, height - side))
    return Placement(source, (width, height), corner, side, turn < flip)


def whole(source: tuple[int, int], side: int) -> Placement:
    """Place the whole image for evaluation: its longest side becomes S."""
    factor = side / max(source)
    width, height = (min(side, max(1, round(length * factor))) for length in source)
    return Placement(source, (width, height), (0, 0), side)


def place_image(
    image: Image.Image,
    placement: Placement,
    interpolation: Interpolation = "bilinear",
    *,
    fill: tuple[int, int, int] = PAD,
) -> Tensor:
    """Crop an image.

    The result equals a resize of the whole image, a crop and a pad, but only the visible part is resized.

    Args:
        image: The whole image.
        placement: Geometry of the crop.
        interpolation: Filter of the resize.
        fill: Color of the padding.

    Returns:
        uint8 (3, S, S).
    """
    left, top, right, bottom = placement._region
    across, down = placement.scale
    # Resizing a box of the source reads only the pixels that the crop shows, where a resize of the whole image would
    # compute the rest too.
    box = left / across, top / down, min(right / across, image.width), min(bottom / down, image.height)
    part = image.resize(placement.covered, FILTERS[interpolation], box=box)
    if placement.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = Image.new("RGB", (placement.side, placement.side), fill)
    canvas.paste(part)
    return to_tensor(canvas)


def place_whole(images: Sequence[Image.Image], side: int) -> tuple[Tensor, list[Placement]]:
    """Place whole images for evaluation.

    Returns:
        The crops, uint8 (B, 3, S, S), and their placements.
    """
    crops = []
    placements = []
    for image in images:
        placement = whole(image.size, side)
        placements.append(placement)
        crops.append(place_image(image, placement))
    return torch.stack(crops), placements


def place_objects(objects: ObjectArrays, placement: Placement, *, with_masks: bool) -> Targets:
    """Move objects into a crop, without crowds, ignored objects and objects outside of it.

    Args:
        objects: Objects of the image.
        placement: Placement of the image.
        with_masks: Crop the masks too, and compute boxes from the cropped masks. An object without a mask gets its box
            as mask. Otherwise boxes are moved and clipped.
    """
    visible = objects[~(objects.crowd | objects.ignored)]
    boxes = _place_boxes(visible.boxes, placement)
    inside = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) > 0
    visible = visible[inside]
    boxes = boxes[inside]
    masks = None
    if with_masks:
        masks = np.zeros((len(visible), placement.side, placement.side), dtype=bool)
        for number, counts in enumerate(visible.counts):
            if counts is None:
                left, top, right, bottom = np.rint(boxes[number]).astype(int).tolist()
                masks[number, top:bottom, left:right] = True
            else:
                _place_mask(counts, visible.boxes[number], placement, masks[number])
        # A mask that the crop cuts may be smaller than its cut box.
        boxes = boxes_of(masks)
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= MIN_SIDE
    if masks is not None:
        masks = masks[large]
    return Targets(visible.labels[large], boxes[large].astype(np.float32), masks)


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute the smallest box around each mask, (N, S, S) to (N, 4). An empty mask gets zeros."""
    boxes = np.zeros((len(masks), 4))
    for number, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            boxes[number] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def draw_distortion(rng: np.random.Generator, probability: float = 0.5) -> Distortion:
    """Draw a photometric distortion with the ranges of torchvision's RandomPhotometricDistort, from nine numbers.

    Source: Liu et al. 2015, SSD (arXiv:1512.02325).
    """
    chance = rng.random(4)
    at = rng.random(4)
    ranges = np.array([(0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)])
    values = (ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * at).tolist()
    drawn: list[float | None] = []
    for value, draw in zip(values, chance.tolist(), strict=True):
        if draw < probability:
            drawn.append(value)
        else:
            drawn.append(None)
    brightness, contrast, saturation, hue = drawn
    return Distortion(brightness, contrast, saturation, hue, contrast_first=bool(rng.random() < 0.5))


def distort(image: Tensor, distortion: Distortion) -> Tensor:
    """Change brightness, contrast, saturation and hue of an image, uint8 (3, H, W)."""
    contrast = distortion.contrast
    if distortion.brightness is not None:
        image = F.adjust_brightness(image, distortion.brightness)
    if contrast is not None and distortion.contrast_first:
        image = F.adjust_contrast(image, contrast)
    if distortion.saturation is not None:
        image = F.adjust_saturation(image, distortion.saturation)
    if distortion.hue is not None:
        image = F.adjust_hue(image, distortion.hue)
    if contrast is not None and not distortion.contrast_first:
        image = F.adjust_contrast(image, contrast)
    return image


def _place_boxes(boxes: NDArray[np.float64], placement: Placement) -> NDArray[np.float64]:
    """Move boxes into the crop and clip them, (N, 4)."""
    (w, h), (left, top) = placement.covered, placement.corner
    moved = boxes * (placement.scale * 2)
    if placement.flip:
        moved[:, [0, 2]] = placement.resized[0] - moved[:, [2, 0]]
    moved -= (left, top, left, top)
    return np.clip(moved, 0, (w, h, w, h))


def _place_mask(counts: bytes, box: NDArray[np.float64], placement: Placement, out: NDArray[np.bool_]) -> None:
    """Draw a mask into the crop with nearest-pixel sampling."""
    width, height = placement.source
    left, top, right, bottom = placement._region
    columns = _nearest(left, right, width, placement.resized[0])
    rows = _nearest(top, bottom, height, placement.resized[1])
    if placement.flip:
        columns = columns[::-1]
    margin = 2  # pixels, because boxes of some sources are rounded or narrower than their masks
    across = np.flatnonzero((columns >= box[0] - margin) & (columns <= box[2] + margin))
    down = np.flatnonzero((rows >= box[1] - margin) & (rows <= box[3] + margin))
    if len(across) and len(down):
        mask = decode_mask(counts, height, width)
        out[down[0] : down[-1] + 1, across[0] : across[-1] + 1] = mask[np.ix_(rows[down], columns[across])]


def _nearest(start: int, stop: int, old: int, new: int) -> NDArray[np.int64]:
    """Find the source pixel of the pixels `start` to `stop` after a resize, rounded as in torch's `nearest`."""
    step = np.float32(old) / np.float32(new)
    pixels = np.floor(np.arange(start, stop, dtype=np.float32) * step).astype(np.int64)
    clipped: NDArray[np.int64] = np.minimum(pixels, old - 1)
    return clipped
