"""Pictures of an evaluation for the report: what was found, what was missed, what flipped between two models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vfm.panels import ImagesPanel, Picture

SIDE = 256  # pixels of the longer side on disk, at most
WIDTH = 128  # CSS pixels on the page: six in a row


@dataclass(frozen=True)
class Shown:
    """A picture and the words under it."""

    image: Image.Image
    caption: str


def images_panel(
    directory: Path, slug: str, title: str, shown: Iterable[Shown], *, order: int, note: str = ""
) -> ImagesPanel:
    """A sheet of pictures, which are written small into `directory/pictures/`."""
    folder = directory / "pictures"
    folder.mkdir(exist_ok=True)
    pictures = []
    for number, item in enumerate(shown):
        small = item.image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        file = folder / f"{slug}-{number:02d}.jpg"
        small.save(file, quality=88)
        pictures.append(Picture(file=str(file.relative_to(directory)), caption=item.caption))
    return ImagesPanel(title=title, note=note, order=order, pictures=pictures, width=WIDTH)
