"""Draw the accuracy by pattern, and items that only one of two models got right."""

# P items, S statements

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.data.choices.choices import Choice, load_choices
from vfm.eval.choices.choice_logits import ChoiceLogits
from vfm.eval.encode.image_panels import CaptionedImage, changed_panel, won_and_lost
from vfm.interfaces import ChoiceDataset, Context, TablePanel
from vfm.statistics import stratified_mean

FLIPS_SHOWN = 8  # items per sheet


def pattern_panel(ctx: Context, choices: ChoiceLogits, correct: Mapping[str, NDArray[np.bool_]]) -> None:
    """Write a table with a row per model and a column per pattern, as in the papers.

    Args:
        ctx: Context of the stage.
        choices: The items.
        correct: Whether each item is right, by model.
    """
    names = choices.names
    patterns = choices.patterns
    rows: list[list[str | float | int | None]] = [["items", *np.bincount(patterns).tolist(), len(patterns)]]
    for model, hits in correct.items():
        row: list[str | float | int | None] = [model]
        for number in range(len(names)):
            row.append(round(100 * float(hits[patterns == number].mean()), 1))
        row.append(round(100 * stratified_mean(hits, patterns), 1))
        rows.append(row)
    columns = ["model", *names, "mean over patterns"]
    ctx.panel(TablePanel(title="By pattern, % right", order=30, columns=columns, rows=rows))


def flip_panels(
    ctx: Context, data: ChoiceDataset, choices: ChoiceLogits, rights: Mapping[str, NDArray[np.bool_]]
) -> None:
    """Write a sheet for each model after the first, with the items that only one of the two got right.

    Args:
        ctx: Context of the stage.
        data: Dataset with the images.
        choices: The items.
        rights: Whether each item is right, by model.
    """
    (baseline, before), *others = rights.items()
    for name, after in others:
        gained, lost = won_and_lost(before.all(axis=1), after.all(axis=1))
        half = FLIPS_SHOWN // 2  # of won and of lost items; one side gets more room if the other has fewer
        shown_items = [*gained[: FLIPS_SHOWN - min(len(lost), half)], *lost[: FLIPS_SHOWN - min(len(gained), half)]]
        items = _with_images(data, np.array(choices.numbers)[shown_items].tolist())
        shown = []
        for item, was_right, is_right in zip(items, before[shown_items], after[shown_items], strict=True):
            shown += _flipped(item, was_right, is_right)
        note = "Under each image is its statement."
        ctx.panel(changed_panel(ctx.directory, (baseline, name), shown, len(gained), len(lost), note=note))


def _with_images(data: ChoiceDataset, numbers: Sequence[int]) -> list[Choice]:
    """Read only some items of a dataset, since all images would not fit in memory."""
    last = max(numbers, default=-1)
    items = {}
    for number, item in enumerate(islice(load_choices(data), last + 1)):
        if number in numbers:
            items[number] = item
    return [items[number] for number in numbers]


def _flipped(item: Choice, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> list[CaptionedImage]:
    """Caption the images of an item with their statements and the outcome of both models."""
    shown = []
    for number, data in enumerate(item.images):
        matches = []
        quoted = []
        for match, (statement, image) in enumerate(zip(item.statements, item.truth, strict=True)):
            if image == number:
                matches.append(match)
                quoted.append(f"“{statement}”")
        words = " / ".join(quoted) or "no statement"
        # Outcomes are per statement or, with a length of 1, for the whole item.
        which = matches[0] if matches and len(before) == len(item.statements) else 0
        caption = f"{item.pattern}: {words} · {_outcome(before[which], after[which])}"
        shown.append(CaptionedImage(Image.open(BytesIO(data)), caption, bool(after[which])))
    return shown


def _outcome(before: bool, after: bool) -> str:
    words = {True: "right", False: "wrong"}
    if before == after:
        return f"{words[bool(after)]} with both"
    return f"{words[bool(before)]} → {words[bool(after)]}"
