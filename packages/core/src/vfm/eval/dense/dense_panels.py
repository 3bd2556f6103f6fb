"""Draw truth and prediction of dense evaluations side by side, worst images first."""

# H, W height and width of an image

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vfm.data.annotated import AnnotatedSource
from vfm.data.annotated.panels import overlay, palette
from vfm.eval.dense.image_text import text_size, write_name
from vfm.interfaces import Context, ImagesPanel, PanelImage, TablePanel

CLASSES_SHOWN = 60  # a longer table is not read, and LVIS has 1,203 classes
NUM_IMAGES = 8
SIDE = 224
GAP = 6
LEGEND_TEXT = 14  # pixels


def class_table(
    class_names: Sequence[str], columns: Mapping[str, NDArray[np.float64]], *, title: str, note: str
) -> TablePanel:
    """Build a table of the scores of each class, sorted by the first column, worst first.

    Args:
        class_names: Names of the classes.
        columns: Scores in percent of all classes by the name of their column, NaN for classes without a score.
        title: Title of the panel.
        note: Note of the panel.
    """
    first = next(iter(columns.values()))
    known = np.flatnonzero(np.isfinite(first))
    rows: list[list[str | float | int | None]] = []
    for label in known[np.argsort(first[known], kind="stable")][:CLASSES_SHOWN].tolist():
        rows.append([class_names[label], *(round(float(scores[label]), 1) for scores in columns.values())])
    return TablePanel(title=title, note=note, order=30, columns=["class", *columns], rows=rows)


def add_map_panels(
    ctx: Context,
    source: AnnotatedSource,
    numbers: Sequence[int],
    truth: Sequence[NDArray[np.integer]],
    predicted: Mapping[str, Sequence[NDArray[np.integer]]],
) -> None:
    """Write the images with the lowest share of right pixels by the first model, with truth and each model's map.

    Args:
        ctx: Context of the stage.
        source: Annotated images.
        numbers: Numbers of the images.
        truth: Label map of each image.
        predicted: Predicted maps by model.
    """
    first = next(iter(predicted.values()))
    shares = [share_right(true_map, first_map) for true_map, first_map in zip(truth, first, strict=True)]
    colours = palette(len(source.dataset.class_names))
    entries: list[PanelImage] = []
    for row in np.argsort(shares, kind="stable")[:NUM_IMAGES].tolist():
        image = source.image(numbers[row])
        views = [image]
        labels: set[int] = set()  # the legend names only classes that one of the maps has
        for maps in (truth, *predicted.values()):
            views.append(overlay(image, maps[row], colours))
            labels.update(np.unique(maps[row]).tolist())
        shown = with_legend(join(views), np.array(sorted(labels)), source, colours)
        file = f"panels/map-{len(entries)}.jpg"
        (ctx.directory / "panels").mkdir(parents=True, exist_ok=True)
        shown.save(ctx.directory / file, quality=90)
        entries.append(PanelImage(file=file, caption=f"{source.keys[numbers[row]]}: {100 * shares[row]:.0f} % right"))
    names = ", ".join(predicted)
    ctx.panel(
        ImagesPanel(
            title="Worst images",
            note=f"Each image, its labels, and the maps of {names}, with the classes in them; by the share of right"
            " pixels of the first model.",
            order=40,
            pictures=entries,
            width=(2 + len(predicted)) * 160,
        )
    )


def with_legend(
    sheet: Image.Image, labels: NDArray[np.integer], source: AnnotatedSource, colours: NDArray[np.uint8]
) -> Image.Image:
    """Add the names of some classes below an image, on their colours.

    Args:
        sheet: The image.
        labels: Classes to name. Negative labels are skipped.
        source: Dataset with the names.
        colours: Colour of each class.
    """
    font = ImageFont.load_default(size=LEGEND_TEXT)
    pen = ImageDraw.Draw(sheet)
    positions: list[tuple[int, int, int]] = []
    x = 0
    y = sheet.height + GAP
    line = 0
    for label in labels[labels >= 0].tolist():
        width, height = text_size(pen, source.dataset.class_names[label], font)
        if x and x + width > sheet.width:
            x = 0
            y = y + line + GAP
        positions.append((label, x, y))
        x = x + width + GAP
        line = max(line, height)
    whole = Image.new("RGB", (sheet.width, y + line + 1), "white")
    whole.paste(sheet)
    pen = ImageDraw.Draw(whole)
    for label, x, y in positions:
        write_name(pen, (x, y), source.dataset.class_names[label], colours[label], font)
    return whole


def share_right(truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> float:
    """Compute the share of labelled pixels that are right, 1 without labelled pixels."""
    known = truth >= 0
    if not known.any():
        return 1.0
    return float((truth[known] == predicted[known]).mean())


def join(images: Sequence[Image.Image], side: int = SIDE) -> Image.Image:
    """Join images of the same size side by side, each scaled up or down to fit `side` pixels."""
    size = images[0].size
    scale = whole_factor(size, side) if max(size) <= side else side / max(size)
    width, height = (max(1, round(scale * length)) for length in size)
    # Enlarge by whole factors without smoothing, so that single pixels stay visible.
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
    sheet = Image.new("RGB", (len(images) * (width + GAP) - GAP, height), "white")
    for number, image in enumerate(images):
        sheet.paste(image.resize((width, height), how), (number * (width + GAP), 0))
    return sheet


def whole_factor(size: tuple[int, int], side: int) -> int:
    """Compute the largest whole factor by which an image still fits in `side` pixels, at least 1."""
    return max(1, side // max(size))
