"""Find images in which another one is pasted, such as screenshots and collages, by the edge around the pasted part.

A crop lies in its original as a pasted image lies in a page, but only the page changes at the frame of this image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vfm_curation.filters.local_points import THUMBNAIL_SIDE as SIDE, Pixels

# Of the page's area; a photo with a logo is no page of the logo. Of 78 images that are found on 5 to 20 % of a photo,
# 47, 47 and 42 count as pasted with 0.025, 0.05 and 0.1, and of two on less than 5 % none (copies_bounds.py).
MIN_SHARE = 0.05
OUTSIDE = 0.03  # longer sides that a frame may reach beyond the page, since positions are not exact
STEP = 1.5  # pixels of the page's thumbnail from the frame to the places that are compared on its two sides
NUM_PLACES = 32  # of each side of the frame
LEAST_PLACES = 20  # inside of the page; a frame at its border has no edge
MIN_EDGE = 1.6  # change across the frame, in changes as far inside and outside of it (copies_bounds.py)
GREY_LEVELS = 6.0  # added to these, since an image may be flat

Floats = NDArray[np.float64]


def is_pasted(image: Pixels, page: Pixels, matrix: Floats) -> bool:
    """Check whether an image is pasted in a page: its frame lies inside, and the page changes at the frame.

    A small part of a page, such as a logo on a photo, does not count, so that the photo is not dropped because of it.

    Args:
        image: Thumbnail of the image that may be pasted.
        page: Thumbnail of the other image.
        matrix: From positions in the image to positions in the page, (3, 2), as in `Alignment`.
    """
    height, width = page.shape
    if image.size * abs(np.linalg.det(matrix[:2])) < MIN_SHARE * page.size:
        return False
    corners = _frame(image) @ matrix[:2] + matrix[2]
    if (corners < -OUTSIDE).any() or (corners > np.array([width, height]) / SIDE + OUTSIDE).any():
        return False
    edges, changes = [], []
    centre = corners.mean(axis=0)
    for start, end in _sides(corners):
        normal = np.array([end[1] - start[1], start[0] - end[0]])
        normal *= np.sign((start - centre) @ normal) * STEP / SIDE / max(1e-9, float(np.linalg.norm(normal)))
        places = start + np.linspace(0.1, 0.9, NUM_PLACES)[:, None] * (end - start)
        # Both sides of the frame, without the pixels that the edge itself blurs, and 3 pixels further away.
        far, outer, inner, deep = (_values(page, places + step * normal) for step in (3, 1, -1, -3))
        edges.append(np.abs(outer - inner))
        changes.append([np.abs(far - outer), np.abs(inner - deep)])
    edge = np.concatenate(edges)
    seen = ~np.isnan(edge)
    if seen.sum() < LEAST_PLACES:
        return False
    # Only beside the edge: a side at the border of the page has none, and may be the most detailed part of the image.
    change = np.nanmean(np.concatenate(changes, axis=1)[:, seen])
    return bool(edge[seen].mean() > MIN_EDGE * (change + GREY_LEVELS))


def inverted(matrix: Floats) -> Floats:
    """Compute the map back, (3, 2)."""
    linear = np.linalg.inv(matrix[:2])
    return np.vstack([linear, -matrix[2] @ linear])


def _frame(image: Pixels) -> Floats:
    """List the corners of an image in turn, in longer sides, (4, 2)."""
    height, width = image.shape
    return np.array([[0, 0], [width, 0], [width, height], [0, height]]) / SIDE


def _sides(corners: Floats) -> Iterator[tuple[Floats, Floats]]:
    return zip(corners, np.roll(corners, -1, axis=0), strict=True)


def _values(image: Pixels, places: Floats) -> Floats:
    """Look up the pixels at places in longer sides, NaN outside of the image."""
    height, width = image.shape
    x, y = np.floor(places * SIDE).astype(np.int64).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    values = np.full(len(places), np.nan)
    values[inside] = image[y[inside], x[inside]]
    return values
