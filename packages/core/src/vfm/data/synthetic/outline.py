"""The synthetic shapes as polygons, and the signed distance to them.

Every shape is a closed polygon in the square [-1, 1]^2, y down, pointing up, and curves are polygons with many sides.
The same exact distance works for all shapes. `DistanceTable` makes its cost per pixel the same for all shapes.
"""

# V vertices, P pixels

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.data.synthetic.scene import Shape

Floats = NDArray[np.floating[Any]]

EXTENT = 1.3
"""Half the width of a distance table. Shapes are within [-1, 1], and the rest is margin for anti-aliasing."""


def _arc(
    centre: tuple[float, float], radius: float, start: float, stop: float, num_points: int = 40
) -> NDArray[np.float64]:
    """Compute points on a circle from angle `start` to `stop` in degrees, 0 to the right and 90 down."""
    angle = np.radians(np.linspace(start, stop, num_points))
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], axis=1)


def _mirrored(*right: tuple[float, float]) -> NDArray[np.float64]:
    """Build a polygon that is symmetric about the vertical axis from its right half, top to bottom."""
    half = np.array(right, dtype=np.float64)
    return np.concatenate([half, (half * [-1, 1])[::-1]])


def _star() -> NDArray[np.float64]:
    angle = np.radians(36 * np.arange(10) - 90)
    # Ten corners by turns far and near. A regular star has 0.38; these tips are wider.
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.44)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, (y + 2.5) / 16], axis=1)  # y down, so the tip is up


def _moon() -> NDArray[np.float64]:
    """Cut a disc out of the disc below it, so that the horns point up."""
    outer, inner, rise = 0.95, 0.68, 0.52
    y = (inner**2 - outer**2 - rise**2) / (2 * rise)  # where the two circles meet
    horn = np.degrees(np.arcsin(y / outer))
    cut = np.degrees(np.arcsin((y + rise) / inner))
    return np.concatenate([_arc((0, 0), outer, horn, 180 - horn), _arc((0, -rise), inner, 180 - cut, cut)])


def _drop() -> NDArray[np.float64]:
    centre, radius = 0.32, 0.66
    tangent = float(np.degrees(np.arcsin(radius / (1 + centre))))  # half the angle at the tip
    return np.concatenate([[[0.0, -1.0]], _arc((0, centre), radius, -tangent, 180 + tangent)])


def _mushroom() -> NDArray[np.float64]:
    cap = _arc((0, 0.1), 0.95, -180, 0)
    return np.concatenate([cap, [[0.34, 0.1], [0.34, 0.95], [-0.34, 0.95], [-0.34, 0.1]]])


@cache
def outline(shape: Shape) -> NDArray[np.float64]:
    """Build the polygon of a shape, pointing up, y down, (V, 2)."""
    match shape:
        case "circle":
            return _arc((0, 0), 0.9, 0, 354, 60)
        case "square":
            return _mirrored((0.8, -0.8), (0.8, 0.8))
        case "triangle":
            return _mirrored((0.0, -1.0), (0.95, 0.75))
        case "diamond":
            return _mirrored((0.0, -1.0), (0.66, 0.0), (0.0, 1.0))
        case "star":
            return _star()
        case "heart":
            return _heart()
        case "arrow":
            return _mirrored((0.0, -1.0), (0.95, 0.0), (0.36, 0.0), (0.36, 0.95))
        case "cross":
            return _mirrored((0.34, -0.95), (0.34, -0.34), (0.95, -0.34), (0.95, 0.34), (0.34, 0.34), (0.34, 0.95))
        case "moon":
            return _moon()
        case "drop":
            return _drop()
        case "mushroom":
            return _mushroom()
        case "hourglass":
            return _mirrored((0.78, -0.9), (0.22, 0.0), (0.78, 0.9))


def signed_distance(x: Floats, y: Floats, vertices: NDArray[np.float64]) -> Floats:
    """Compute the distance of each point to a polygon, negative inside.

    Args:
        x: x coordinates of the points, any shape.
        y: Their y coordinates, the same shape.
        vertices: The polygon's corners in order, (V, 2).

    Returns:
        Distances in the units of the coordinates, with the shape of `x`.
    """
    squared = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(vertices.tolist(), np.roll(vertices, -1, axis=0).tolist(), strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / ((ex * ex + ey * ey) or 1.0), 0, 1)
        # Distance to the nearest point of the edge. The smallest over all edges is the distance to the polygon.
        squared = np.minimum(squared, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        crosses = (y >= ay) != (y >= by)  # even-odd rule, by a ray to the right
        inside ^= crosses & ((px * ey < py * ex) == (ey > 0))
    distance: Floats = np.where(inside, -np.sqrt(squared), np.sqrt(squared))
    return distance


@dataclass(frozen=True)
class DistanceTable:
    """The signed distance to a shape on a grid, read by bilinear interpolation.

    Attributes:
        values: The table row by row, (num_points ** 2,), over [-EXTENT, EXTENT] in both directions.
        num_points: Points along one side.
        core: x and y of the point farthest from the edge inside the shape, and its distance to the edge.
    """

    values: NDArray[np.float32]
    num_points: int
    core: tuple[float, float, float]

    def __call__(self, x: Floats, y: Floats) -> Floats:
        """Look up the distance at points in the shape's units. Points outside the table get its border value."""
        last = self.num_points - 1
        step = last / (2 * EXTENT)
        column = np.clip((x + EXTENT) * step, 0, last - 0.001)
        row = np.clip((y + EXTENT) * step, 0, last - 0.001)
        left, top = column.astype(np.int32), row.astype(np.int32)
        column -= left
        row -= top
        index = top * self.num_points + left
        upper = self.values[index]
        upper += column * (self.values[index + 1] - upper)
        index += self.num_points
        lower = self.values[index]
        lower += column * (self.values[index + 1] - lower)
        between: Floats = upper + row * (lower - upper)
        return between


@cache
def distance_table(shape: Shape, num_points: int = 129) -> DistanceTable:
    """Compute the table of a shape, once per process."""
    axis = np.linspace(-EXTENT, EXTENT, num_points)
    x, y = np.meshgrid(axis, axis)
    distance = signed_distance(x, y, outline(shape))
    row, column = np.unravel_index(int(np.argmin(distance)), distance.shape)
    core = (float(axis[column]), float(axis[row]), -float(distance[row, column]))
    return DistanceTable(distance.astype(np.float32).ravel(), num_points, core)
