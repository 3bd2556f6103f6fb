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
    filled = [table for table in tables if table.headline]
    for table in filled[-MAX_LINES:]:
        result = table.headline[0]
        values = []
        for row in result.rows:
            value = number_format.quantity(row.value, result.unit)
            values.append(f"{value} ({row.model})" if row.model else value)
        main = f"{table.title}: {metric_in_words(result.metric)} {', '.join(values)}"
        lines.append(", ".join([main, *result.facts]) + ".")
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
    curves: dict[str, Drawing] = {}  # first curve of each training
    for stage, panels in drawings.items():
        for drawing in panels:
            panel = drawing.panel
            if isinstance(panel, ImagesPanel) and panel.pictures:
                sheets.append(drawing)
                if any(image.right is not None for image in panel.pictures):
                    answers.append(drawing)
            elif isinstance(panel, LinesPanel) and panel.x_label == TRAINING_AXIS:
                curves.setdefault(stage, drawing)
    last_curve = list(curves.values())[-1:]
    return [*map(_cut, answers[:1] or sheets[-1:]), *last_curve]


def _cut(sheet: Drawing) -> Drawing:
    """Cut a sheet to the first row, or to two rows if a row has one image. The stage keeps the whole sheet."""
    grid: Any = sheet.content
    assert isinstance(sheet.panel, ImagesPanel)
    shown = max(2, (SHEET_WIDTH + IMAGE_GAP) // (sheet.panel.width + IMAGE_GAP))
    if not grid or len(grid.images) <= shown:
        return sheet
    return replace(sheet, content=replace(grid, images=grid.images[:shown]))
