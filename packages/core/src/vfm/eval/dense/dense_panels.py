"""Panels of dense evaluations: truth and prediction side by side, the worst pictures first."""

# H, W height and width of a picture

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vfm.data.annotated import AnnotatedSource
from vfm.data.annotated.panels import overlay, palette
from vfm.eval.dense.picture_text import text_size, write_name
from vfm.interfaces import Context, ImagesPanel, PanelImage

NUM_PICTURES = 8
SIDE = 224
GAP = 6
LEGEND_TEXT = 14  # pixels


def add_map_panels(
    ctx: Context,
    source: AnnotatedSource,
    numbers: Sequence[int],
    truth: Sequence[NDArray[np.integer]],
    predicted: Mapping[str, Sequence[NDArray[np.integer]]],
) -> None:
    """Write the pictures with the fewest right pixels of the first model: picture, truth, and each model's map."""
    first = next(iter(predicted.values()))
    shares = [share_right(true, found) for true, found in zip(truth, first, strict=True)]
    colours = palette(len(source.dataset.class_names))
    pictures: list[PanelImage] = []
    for place in np.argsort(shares, kind="stable")[:NUM_PICTURES].tolist():
        picture = source.image(numbers[place])
        maps = [truth[place], *(found[place] for found in predicted.values())]
        sheet = join([picture, *(overlay(picture, one, colours) for one in maps)])
        shown = with_legend(sheet, np.unique(np.concatenate([one.ravel() for one in maps])), source, colours)
        file = f"panels/map-{len(pictures)}.jpg"
        (ctx.directory / "panels").mkdir(parents=True, exist_ok=True)
        shown.save(ctx.directory / file, quality=90)
        pictures.append(
            PanelImage(file=file, caption=f"{source.keys[numbers[place]]}: {100 * shares[place]:.0f} % right")
        )
    names = ", ".join(predicted)
    ctx.panel(
        ImagesPanel(
            title="Worst pictures",
            note=f"Each picture, its labels, and the maps of {names}, with the classes in them; by the share of right"
            " pixels of the first model.",
            order=40,
            pictures=pictures,
            width=(2 + len(predicted)) * 160,
        )
    )


def with_legend(
    sheet: Image.Image, labels: NDArray[np.integer], source: AnnotatedSource, colours: NDArray[np.uint8]
) -> Image.Image:
    """Return a picture with the names of some classes below it, on their colours; negative labels have none."""
    font, pen = ImageFont.load_default(size=LEGEND_TEXT), ImageDraw.Draw(sheet)
    places: list[tuple[int, int, int]] = []
    x, y, line = 0, sheet.height + GAP, 0
    for label in labels[labels >= 0].tolist():
        width, height = text_size(pen, source.dataset.class_names[label], font)
        if x and x + width > sheet.width:
            x, y = 0, y + line + GAP
        places.append((label, x, y))
        x, line = x + width + GAP, max(line, height)
    whole = Image.new("RGB", (sheet.width, y + line + 1), "white")
    whole.paste(sheet)
    pen = ImageDraw.Draw(whole)
    for label, x, y in places:
        write_name(pen, (x, y), source.dataset.class_names[label], colours[label], font)
    return whole


def share_right(truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> float:
    """Return the share of the labelled pixels that are right; 1 without labelled pixels."""
    known = truth >= 0
    return float((truth[known] == predicted[known]).mean()) if known.any() else 1.0


def join(pictures: Sequence[Image.Image], side: int = SIDE) -> Image.Image:
    """Return pictures of one size side by side, at most `side` pixels wide and high; small ones are enlarged."""
    scale = whole_factor(pictures[0].size, side) if max(pictures[0].size) <= side else side / max(pictures[0].size)
    width, height = (max(1, round(scale * length)) for length in pictures[0].size)
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for place, one in enumerate(pictures):
        how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
        sheet.paste(one.resize((width, height), how), (place * (width + GAP), 0))
    return sheet


def whole_factor(size: tuple[int, int], side: int) -> int:
    """Return the largest whole factor by which a picture still fits in `side` pixels, at least 1."""
    return max(1, side // max(size))
