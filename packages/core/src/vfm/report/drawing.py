"""Prepare panels for the page, with curves as SVG, bars on a scale, tables, and embedded images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from vfm.interfaces import BarsPanel, ImagesPanel, LinesPanel, Panel, PanelImage, TablePanel, load_panel, panel_files
from vfm.report import charts
from vfm.report.scale import Scale
from vfm.report.theme import color, dash

MAX_IMAGE_BYTES = 40_000  # larger files are re-encoded at twice the displayed size
MAX_CAPTION = 240  # characters
MAX_ROWS = 200  # of a table; all rows are in the panel's file


@dataclass(frozen=True)
class CurvesChart:
    """An `<svg>` and its legend.

    The legend has (name, colour, dash) of each curve. It is empty if the title is its name.
    """

    svg: str
    legend: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Bars:
    """Rows of (label, value, low, high), and their common scale."""

    rows: list[tuple[str, float | None, float | None, float | None]]
    scale: Scale


@dataclass(frozen=True)
class Table:
    """Columns as (name, whether it holds numbers), the first rows, and the number of omitted rows."""

    columns: list[tuple[str, bool]]
    rows: list[list[str | float | int | None]]
    num_left_out: int


@dataclass(frozen=True)
class GridImage:
    """An image of a grid.

    Attributes:
        url: Data URL. Empty if the file cannot be shown.
        title: The file, or the reason why it cannot be shown.
        sharp: Whether to enlarge it without smoothing.
        right: As in `PanelImage`.
    """

    url: str
    caption: str
    title: str
    sharp: bool
    right: bool | None


@dataclass(frozen=True)
class ImageGrid:
    """A grid of images."""

    images: list[GridImage]


@dataclass(frozen=True)
class Drawing:
    """A panel with its prepared content, or the reason why it cannot be drawn."""

    panel: Panel | None
    content: CurvesChart | Bars | Table | ImageGrid | None = None
    problem: str = ""

    @property
    def front(self) -> bool:
        """Whether the panel belongs to the top of the page."""
        return self.panel is not None and self.panel.front


def draw_panels(directory: Path, salt: str) -> Iterator[Drawing]:
    """Yield the panels of an artifact, prepared for the page. A damaged panel yields a drawing with a problem.

    Args:
        directory: The artifact's folder.
        salt: Makes the ids of elements unique on the page.
    """
    for index, file in enumerate(panel_files(directory)):
        try:
            panel = load_panel(file)
        except ValueError as error:
            yield Drawing(None, problem=_problem(error))
            continue
        yield draw(panel, directory, f"{salt}-{index}")


def draw_all(panels: Iterable[Panel], directory: Path, salt: str) -> list[Drawing]:
    """Prepare several panels for the page. The arguments are those of `draw`."""
    return [draw(panel, directory, f"{salt}-{index}") for index, panel in enumerate(panels)]


def draw(panel: Panel, directory: Path, salt: str) -> Drawing:
    """Prepare a panel for the page.

    Args:
        panel: The panel.
        directory: Folder of its images.
        salt: Part of the ids in its SVG.
    """
    try:
        return Drawing(panel, _content(panel, directory, salt))
    except ValueError as error:
        return Drawing(panel, problem=_problem(error))


def _problem(error: ValueError) -> str:
    return f"this panel cannot be drawn: {str(error).splitlines()[0]}"


def _content(panel: Panel, directory: Path, salt: str) -> CurvesChart | Bars | Table | ImageGrid | None:
    """Build the content of a panel. A text, and an empty panel, have none."""
    match panel:
        case LinesPanel() if any(series.y.count(None) < len(series.y) for series in panel.series):
            return _curves(panel, salt)
        case BarsPanel() if panel.values:
            return _bars(panel)
        case TablePanel() if panel.rows:
            return _table(panel)
        case ImagesPanel() if panel.pictures:
            return ImageGrid([_image(image, directory, panel.width) for image in panel.pictures])
        case _:
            return None


def _curves(panel: LinesPanel, salt: str) -> CurvesChart:
    legend = []
    if len(panel.series) > 1 or panel.series[0].name.lower() != panel.title.lower():
        legend = [(series.name, color(i), dash(i)) for i, series in enumerate(panel.series)]
    return CurvesChart(charts.lines_svg(panel, salt), legend)


def _bars(panel: BarsPanel) -> Bars:
    none = [None] * len(panel.values)
    rows = list(zip(panel.labels, panel.values, panel.low or none, panel.high or none, strict=True))
    return Bars(rows, Scale.of([*panel.values, *(panel.low or ()), *(panel.high or ()), panel.reference]))


def _table(panel: TablePanel) -> Table:
    width = len(panel.columns)
    rows = [[*row, *[None] * width][:width] for row in panel.rows]
    columns = []
    for name, cells in zip_longest(panel.columns, zip(*rows, strict=True), fillvalue=()):
        columns.append((str(name), _holds_numbers(cells)))
    return Table(columns, rows[:MAX_ROWS], max(0, len(rows) - MAX_ROWS))


def _holds_numbers(cells: Iterable[object]) -> bool:
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(isinstance(cell, (int, float)) for cell in known)


def _image(image: PanelImage, directory: Path, width: int) -> GridImage:
    caption = image.caption
    if len(caption) > MAX_CAPTION:
        caption = caption[:MAX_CAPTION] + "\u2026"
    try:
        url, sharp = _embedded((directory / image.file).resolve(), directory.resolve(), width)
    except ValueError as error:
        return GridImage("", caption, f"{image.file} {error}", sharp=False, right=image.right)
    return GridImage(url, caption, image.file, sharp, image.right)


def _embedded(file: Path, directory: Path, width: int) -> tuple[str, bool]:
    """Encode an image as a data URL, and check whether it is so small that its pixels should stay sharp.

    Raises:
        ValueError: If it cannot be shown. The message has the reason.
    """
    if not file.is_relative_to(directory):
        raise ValueError("is outside the artifact's folder")
    try:
        with Image.open(file, formats=["PNG", "JPEG"]) as image:
            sharp = 2 * image.width <= width  # synthetic images and masks
            data = file.read_bytes()
            kind = str(image.format).lower()
            if len(data) > MAX_IMAGE_BYTES and image.width > 2 * width:
                data = _smaller(image, 2 * width)
                kind = "jpeg"
            else:
                image.load()
    except FileNotFoundError:
        raise ValueError("is missing") from None
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("is not a readable PNG or JPEG") from None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", sharp


def _smaller(image: Image.Image, width: int) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((width, 4 * width))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
