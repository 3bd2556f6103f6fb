"""Sheets of images for the report, such as what a model found, what it missed, and what differs between two models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.interfaces import ImagesPanel, PanelImage

SIDE = 256  # pixels of the longer side on disk, at most
WIDTH = 128  # CSS pixels on the page: six in a row


@dataclass(frozen=True)
class CaptionedImage:
    """An image, the text under it, and whether the model is right on it, if it is an answer."""

    image: Image.Image
    caption: str
    right: bool | None = None


def images_panel(
    directory: Path, slug: str, title: str, images: Iterable[CaptionedImage], *, order: int, note: str = ""
) -> ImagesPanel:
    """Write small copies of the images into `directory/pictures/`, and return their panel."""
    folder = directory / "pictures"
    folder.mkdir(exist_ok=True)
    pictures = []
    for number, item in enumerate(images):
        small = item.image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        file = folder / f"{slug}-{number:02d}.jpg"
        small.save(file, quality=88)
        pictures.append(PanelImage(file=str(file.relative_to(directory)), caption=item.caption, right=item.right))
    return ImagesPanel(title=title, note=note, order=order, pictures=pictures, width=WIDTH)


def first_of_each(places: NDArray[np.int64], groups: NDArray[np.int64], count: int) -> list[int]:
    """Return the first places whose items are of different groups, such as one image of each class.

    Args:
        places: indices of items, in the order of interest.
        groups: group of each item, (N,).
        count: number of places to return, at most.
    """
    _, first = np.unique(groups[places], return_index=True)
    return [int(place) for place in places[np.sort(first)[:count]]]
