"""Tables, charts and images that a stage saves in `panels/` of its artifact, for the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from vfm.base import Record, UserError, error_lines, redacted


class _Titled(Record):
    title: str
    note: str = Field("", description="one or two sentences under the title that explain the panel")
    order: int = Field(50, description="order among the panels of a stage, smallest first")
    front: bool = Field(False, description="show at the top of the page, before all results")

    def save(self, directory: Path) -> None:
        """Write the panel into the artifact's folder, without credentials. A panel of the same title is replaced."""
        folder = directory / "panels"
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        panel = type(self).model_validate(redacted(self.model_dump(mode="python")))
        stem = f"{self.order:02d}-{slug}"
        file = folder / f"{stem}.json"
        number = 1
        while _title_in(file) not in (None, panel.title):  # different titles may have the same slug
            number += 1
            file = folder / f"{stem}-{number}.json"
        file.write_text(panel.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _title_in(file: Path) -> str | None:
    """Read the title of the panel in a file, if there is a panel."""
    try:
        return load_panel(file).title
    except UserError:
        return None


def _check_lengths(owner: str, **parts: Sequence[object] | None) -> None:
    lengths = {name: len(part) for name, part in parts.items() if part is not None}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"{owner}: expected equal lengths, got {counts}")


class TablePanel(_Titled):
    """A table. Numbers are right-aligned. A row may have fewer cells than there are columns, but not more."""

    type: Literal["table"] = "table"
    columns: list[str]
    rows: list[list[str | float | int | None]]

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        for row in self.rows:
            if len(row) > len(self.columns):
                raise ValueError(
                    f"table '{self.title}': expected at most {len(self.columns)} cells in a row, got {len(row)}"
                )
        return self


class Series(Record):
    """One line of a chart, with a band if `low` and `high` are given.

    None is a gap. Files store it for NaN.
    """

    name: str
    x: list[float]
    y: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    marks: bool = Field(False, description="draw a mark for each point instead of a line, and a bar instead of a band")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        _check_lengths(f"series '{self.name}'", x=self.x, y=self.y, low=self.low, high=self.high)
        return self


class LinesPanel(_Titled):
    """Curves over a common x axis, such as loss over steps."""

    type: Literal["lines"] = "lines"
    series: list[Series]
    x_label: str
    y_label: str
    curve: str = Field(
        "",
        description="name of the first curve in a chart that combines all panels of this title, at the top of the page,"
        " where it is the mean over the seeds",
    )
    x_log: bool = False
    y_log: bool = False


class BarsPanel(_Titled):
    """Bars, such as a funnel.

    `low` and `high` draw an interval, `reference` a line (for example chance level). A value of None has a row without
    a bar. Files store it for NaN.
    """

    type: Literal["bars"] = "bars"
    labels: list[str]
    values: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    reference: float | None = None
    x_label: str = ""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        _check_lengths(f"panel '{self.title}'", labels=self.labels, values=self.values, low=self.low, high=self.high)
        return self


class PanelImage(Record):
    """An image file in the artifact's folder, and its caption."""

    file: str = Field(description="path of a PNG or JPEG, relative to the artifact's folder")
    caption: str = ""
    right: bool | None = Field(None, description="whether the model is right on it, which readers can filter by")


class ImagesPanel(_Titled):
    """A grid of images with captions."""

    type: Literal["images"] = "images"
    pictures: list[PanelImage]
    width: int = Field(128, description="width of each image on the page, in CSS pixels")
    compares: tuple[str, str] | None = Field(
        None, description="the baseline and the model, if the images show where their answers differ"
    )


class TextPanel(_Titled):
    """Plain text."""

    type: Literal["text"] = "text"
    text: str


Panel = TablePanel | LinesPanel | BarsPanel | ImagesPanel | TextPanel
_ADAPTER: TypeAdapter[Panel] = TypeAdapter(
    Annotated[Panel, Field(discriminator="type")],
    config=ConfigDict(defer_build=True),  # a plan reads no panel
)


def panel_files(directory: Path) -> list[Path]:
    """List the panel files of an artifact, in order."""
    return sorted((directory / "panels").glob("*.json"))


def load_panel(file: Path) -> Panel:
    """Load a panel.

    Raises:
        UserError: If the file cannot be read, or is not a valid panel.
    """
    try:
        return _ADAPTER.validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file.name}: {error.strerror}") from None
    except ValidationError as error:
        location, line = error_lines(error, _Titled)[0]
        key = ".".join(map(str, location[1:]))  # the first part is the panel's type
        raise UserError(": ".join(filter(None, (file.name, key, line)))) from None


def load_panels(directory: Path) -> list[Panel]:
    """Load the panels of an artifact, in order.

    Raises:
        UserError: If a panel cannot be read.
    """
    return list(map(load_panel, panel_files(directory)))
