"""Sheets of images for the report, such as hits and misses of a model, or differences between two models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.interfaces import ImagesPanel, PanelImage

SIDE = 256  # most pixels of the longer side on disk
WIDTH = 128  # CSS pixels on the page, where six images fit in a row


@dataclass(frozen=True)
class CaptionedImage:
    """An image, the text under it, and whether the model answered it correctly, None if it is no answer."""

    image: Image.Image
    caption: str
    right: bool | None = None


def images_panel(
    directory: Path, slug: str, title: str, images: Iterable[CaptionedImage], *, order: int, note: str = ""
) -> ImagesPanel:
    """Write small copies of the images into `directory/pictures/`, and build their panel."""
    folder = directory / "pictures"
    folder.mkdir(exist_ok=True)
    entries = []
    for number, item in enumerate(images):
        small = item.image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        file = folder / f"{slug}-{number:02d}.jpg"
        small.save(file, quality=88)
        entries.append(PanelImage(file=str(file.relative_to(directory)), caption=item.caption, right=item.right))
    return ImagesPanel(title=title, note=note, order=order, pictures=entries, width=WIDTH)


def first_of_each(indices: NDArray[np.int64], groups: NDArray[np.int64], count: int) -> list[int]:
    """Select the first item of each group, such as one image of each class.

    Args:
        indices: indices of items, in the order of interest.
        groups: group of each item, (N,).
        count: largest number of items to select.
    """
    # `np.unique` sorts by group; the positions of first occurrences restore the order of interest.
    _, first = np.unique(groups[indices], return_index=True)
    return [int(index) for index in indices[np.sort(first)[:count]]]
