"""Sheets of images for the report, such as hits and misses of a model, or differences between two models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vfm.interfaces import ImagesPanel, PanelImage

SIDE = 256  # most pixels of the longer side on disk
WIDTH = 128  # CSS pixels on the page, where six images fit in a row


@dataclass(frozen=True)
class CaptionedImage:
    """An image, the text under it, and whether the model answered it correctly.

    An image that is not an answer has None.
    """

    image: Image.Image
    caption: str
    right: bool | None = None


def images_panel(
    directory: Path, slug: str, title: str, images: Iterable[CaptionedImage], *, order: int, note: str = ""
) -> ImagesPanel:
    """Write small copies of images into `directory/pictures/`, and build their panel.

    Args:
        directory: Folder of the artifact.
        slug: Beginning of the file names.
        title: Title of the panel.
        images: Images with their captions.
        order: Place of the panel on the page.
        note: Text under the title.
    """
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


def won_and_lost(before: ArrayLike, after: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the items that only the second, or only the first of two models gets right.

    Args:
        before: Whether the baseline is right on each item, (N,).
        after: Whether the model is right on each item, (N,).
    """
    was_right, is_right = np.asarray(before, bool), np.asarray(after, bool)
    return np.flatnonzero(is_right & ~was_right), np.flatnonzero(was_right & ~is_right)


def changed_panel(
    directory: Path,
    models: tuple[str, str],
    images: Iterable[CaptionedImage],
    num_won: int,
    num_lost: int,
    *,
    note: str,
) -> ImagesPanel:
    """Build the sheet of items that only one of two models gets right.

    Args:
        directory: The artifact's folder.
        models: Names of the baseline and of the model.
        images: The items shown; `right` says whether the model is right.
        num_won: Number of items that only the model gets right.
        num_lost: Number of items that only the baseline gets right.
        note: Explains the captions.
    """
    baseline, model = models
    note = f"{num_won:,} won and {num_lost:,} lost against {baseline}. {note}"
    panel = images_panel(
        directory, f"flipped-{model}", f"Items that flipped from {baseline} to {model}", images, order=60, note=note
    )
    return panel.model_copy(update={"compares": models})


def first_of_each(indices: NDArray[np.int64], groups: NDArray[np.int64], count: int) -> list[int]:
    """Select the first item of each group, such as one image of each class.

    Args:
        indices: Indices of items, in the order of interest.
        groups: Group of each item, (N,).
        count: Largest number of items to select.
    """
    # `np.unique` sorts by group; the positions of first occurrences restore the order of interest.
    _, first = np.unique(groups[indices], return_index=True)
    chosen: list[int] = indices[np.sort(first)[:count]].tolist()
    return chosen
