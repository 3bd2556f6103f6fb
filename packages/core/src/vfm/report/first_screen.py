"""Choose main results, sample images and a curve for the top of a page, if its stages put nothing there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vfm.base import metric_in_words, number_format
from vfm.interfaces import ImagesPanel, LinesPanel
from vfm.report.result_table import ResultTable

if TYPE_CHECKING:  # `drawing` imports matplotlib, an optional extra
    from vfm.report.drawing import Drawing

MAX_LINES = 3  # results in words
SHEET_WIDTH, IMAGE_GAP = 840, 14  # pixels of the page
TRAINING_AXIS = "step"  # x axis of the curves of training runs


def main_results(tables: Sequence[ResultTable]) -> list[str]:
    """Describe the main metric of the last tables.

    An example is "zero_shot: top-1 accuracy 36.7 % (clip), n = 1,080".
    """
    lines = []
    for table in [table for table in tables if table.headline][-MAX_LINES:]:
        result = table.headline[0]
        quantities = [number_format.quantity(row.value, result.unit) for row in result.rows]
        models = [f" ({row.model})" if row.model else "" for row in result.rows]
        values = ", ".join(f"{value}{model}" for value, model in zip(quantities, models, strict=True))
        lines.append(", ".join([f"{table.title}: {metric_in_words(result.metric)} {values}", *result.facts]) + ".")
    return lines


def first_panels(drawings: Mapping[str, Sequence[Drawing]]) -> list[Drawing]:
    """Select a sheet of images, cut to a row or two, and the first curve of the last training.

    The sheet is the first one that shows answers, since a recipe names its main evaluation and its main two models
    first. Without answers it is the last one.

    Args:
        drawings: The panels of each stage, in the order of the page.
    """
    sheets: list[Drawing] = []
    answers: list[Drawing] = []
    curves: list[Drawing] = []
    for panels in drawings.values():
        for drawing in panels:
            if isinstance(drawing.panel, ImagesPanel) and drawing.panel.pictures:
                sheets.append(drawing)
                if any(image.right is not None for image in drawing.panel.pictures):
                    answers.append(drawing)
        curves += [d for d in panels if isinstance(d.panel, LinesPanel) and d.panel.x_label == TRAINING_AXIS][:1]
    return [*map(_cut, answers[:1] or sheets[-1:]), *curves[-1:]]


def _cut(sheet: Drawing) -> Drawing:
    """Cut a sheet to the first row, or to two rows if a row has one image. The stage keeps the whole sheet."""
    grid: Any = sheet.content
    assert isinstance(sheet.panel, ImagesPanel)
    shown = max(2, (SHEET_WIDTH + IMAGE_GAP) // (sheet.panel.width + IMAGE_GAP))
    if not grid or len(grid.images) <= shown:
        return sheet
    return replace(sheet, content=replace(grid, images=grid.images[:shown]))
