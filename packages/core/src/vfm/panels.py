"""Things to look at that a stage leaves in `panels/`. The report draws them and knows no plugin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from vfm.config import Config


class _Titled(Config):
    title: str
    note: str = Field("", description="one or two sentences under the title: what to see here")
    order: int = Field(50, description="place among the panels of a stage, smallest first")

    def save(self, directory: Path) -> None:
        """Writes the panel into the artifact's folder."""
        folder = directory / "panels"
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        (folder / f"{self.order:02d}-{slug}.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


class TablePanel(_Titled):
    """Rows and columns; numbers are right-aligned."""

    type: Literal["table"] = "table"
    columns: list[str]
    rows: list[list[str | float | int | None]]


class Series(Config):
    """One line of a chart, with a band where `low` and `high` are given."""

    name: str
    x: list[float]
    y: list[float | None]
    low: list[float] | None = None
    high: list[float] | None = None


class LinesPanel(_Titled):
    """Curves over a common axis, such as loss over steps."""

    type: Literal["lines"] = "lines"
    series: list[Series]
    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False


class BarsPanel(_Titled):
    """Bars with a value each, such as a funnel; `low` and `high` draw an interval, `reference` a line (chance)."""

    type: Literal["bars"] = "bars"
    labels: list[str]
    values: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    reference: float | None = None
    x_label: str = ""


class Picture(Config):
    """An image file in the artifact's folder and the words under it."""

    file: str = Field(description="path relative to the artifact's folder; PNG or JPEG")
    caption: str = ""


class ImagesPanel(_Titled):
    """A sheet of pictures."""

    type: Literal["images"] = "images"
    pictures: list[Picture]
    width: int = Field(128, description="width of one picture on the page, in CSS pixels")


class TextPanel(_Titled):
    """Plain words."""

    type: Literal["text"] = "text"
    text: str


Panel = TablePanel | LinesPanel | BarsPanel | ImagesPanel | TextPanel
_ADAPTER: TypeAdapter[Panel] = TypeAdapter(Annotated[Panel, Field(discriminator="type")])


def load_panels(directory: Path) -> list[Panel]:
    """The panels of an artifact, in their order."""
    return [_ADAPTER.validate_json(file.read_bytes()) for file in sorted((directory / "panels").glob("*.json"))]
