"""How the frames of a clip are resized and cropped: numbers only, so that workers and tests agree.

Source: Wang et al. 2016, Temporal segment networks (arXiv:1608.00859), for crops of several scales at the corners and
the centre.
"""

# S side of a clip in pixels

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PLACES = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
"""The corners and the centre, as shares of the room beside a crop."""


@dataclass(frozen=True)
class ClipView:
    """One clip: its frames, the size to which they are resized, the part that is kept, and whether it is mirrored."""

    frames: tuple[int, ...]
    size: tuple[int, int]  # width and height of the resized frame
    box: tuple[int, int, int, int]  # left, top, width, height in the resized frame
    flip: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the clip."""
        return self.box[3], self.box[2]

    def cropped(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the part of a resized frame."""
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
    """Draw a training crop: of a scale of the shorter side, at a corner or the centre, resized to a square of S.

    Width and height may differ by one step of the scales, as in the code of EVA's video models.

    Args:
        frames: of the clip.
        size: width and height of the video.
        side: S.
        rng: random generator.
        scales: sides of the crop, relative to the shorter side of the video.
        flip: probability of a left-right flip.
    """
    steps = [(one, other) for one in range(len(scales)) for other in range(len(scales)) if abs(one - other) <= 1]
    place, where, turn = rng.random(3)
    across, down = (scales[step] for step in steps[int(place * len(steps))])
    short = min(size)
    resized = (_scaled(size[0], side, across * short), _scaled(size[1], side, down * short))
    x, y = PLACES[int(where * len(PLACES))]
    box = (round(x * (resized[0] - side)), round(y * (resized[1] - side)), side, side)
    return ClipView(frames, resized, box, bool(turn < flip))


def fixed_views(frames: tuple[int, ...], size: tuple[int, int], side: int, num_crops: int) -> list[ClipView]:
    """Return the test views of a clip: its shorter side is resized to S; crops are spread along the longer side.

    Args:
        frames: of the clip.
        size: width and height of the video.
        side: S.
        num_crops: 1: the centre; 3: both ends and the centre.
    """
    places = [0.5] if num_crops == 1 else [number / (num_crops - 1) for number in range(num_crops)]
    resized = (_scaled(size[0], side, min(size)), _scaled(size[1], side, min(size)))
    return [ClipView(frames, resized, center_box(resized, side, place)) for place in places]


def center_box(size: tuple[int, int], side: int, place: float = 0.5) -> tuple[int, int, int, int]:
    """Return a square box of S in a frame of `size`, at a place from 0 to 1 of the room beside it."""
    return round(place * (size[0] - side)), round(place * (size[1] - side)), side, side


def _scaled(length: int, side: int, kept: float) -> int:
    """Return the length of a side after the resizing by which `kept` pixels become `side`."""
    return max(side, round(length * side / kept))
