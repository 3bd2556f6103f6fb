"""Choose how the frames of a clip are resized and cropped, as numbers, so that workers and tests agree.

Source: Wang et al. 2016, Temporal segment networks (arXiv:1608.00859), for crops with several scales at the corners and
the centre.
"""

# S side of a clip in pixels

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

PLACES = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
"""The corners and the centre, as shares of the room next to a crop."""


@dataclass(frozen=True)
class ClipView:
    """A view of a clip, with its frames, the size after resizing, the cropped part, and whether it is mirrored."""

    frames: tuple[int, ...]
    size: tuple[int, int]  # width and height of the resized frame
    box: tuple[int, int, int, int]  # left, top, width, height in the resized frame
    flip: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the clip."""
        return self.box[3], self.box[2]

    def cropped(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop a resized frame, and mirror it if `flip` is set."""
        left, top, width, height = self.box
        part = pixels[top : top + height, left : left + width]
        return part[:, ::-1] if self.flip else part


def drawn_view(
    frames: tuple[int, ...],
    size: tuple[int, int],
    side: int,
    rng: np.random.Generator,
    *,
    scales: tuple[float, ...],
    flip: float,
) -> ClipView:
    """Draw a training crop at a corner or the centre, with a random scale, resized to a square of S.

    Width and height may differ by one step of the scales, as in the code of EVA's video models.

    Args:
        frames: Frames of the clip.
        size: Width and height of the video.
        side: S.
        rng: Random generator.
        scales: Sides of the crop, relative to the shorter side of the video.
        flip: Probability of a left-right flip.
    """
    steps = [(i, j) for i, j in product(range(len(scales)), repeat=2) if abs(i - j) <= 1]
    scale_draw, corner_draw, flip_draw = rng.random(3)
    i, j = steps[int(scale_draw * len(steps))]
    across = scales[i]
    down = scales[j]
    short = min(size)
    resized = (_scaled(size[0], side, across * short), _scaled(size[1], side, down * short))
    x, y = PLACES[int(corner_draw * len(PLACES))]
    box = (round(x * (resized[0] - side)), round(y * (resized[1] - side)), side, side)
    return ClipView(frames, resized, box, bool(flip_draw < flip))


def fixed_views(frames: tuple[int, ...], size: tuple[int, int], side: int, num_crops: int) -> list[ClipView]:
    """Create the test views of a clip by resizing its shorter side to S and spreading crops along the longer side.

    Args:
        frames: Frames of the clip.
        size: Width and height of the video.
        side: S.
        num_crops: Number of crops: 1 for the centre, 3 for both ends and the centre.
    """
    positions = [0.5]
    if num_crops != 1:
        positions = [number / (num_crops - 1) for number in range(num_crops)]
    resized = (_scaled(size[0], side, min(size)), _scaled(size[1], side, min(size)))
    return [ClipView(frames, resized, center_box(resized, side, position)) for position in positions]


def center_box(size: tuple[int, int], side: int, position: float = 0.5) -> tuple[int, int, int, int]:
    """Compute a square box in a frame.

    Args:
        size: Width and height of the frame.
        side: Side of the box.
        position: Position from 0 to 1 in the room next to the box.
    """
    return round(position * (size[0] - side)), round(position * (size[1] - side)), side, side


def _scaled(length: int, side: int, crop: float) -> int:
    """Compute the length of a side after the resizing that maps `crop` pixels to `side` pixels."""
    return max(side, round(length * side / crop))
