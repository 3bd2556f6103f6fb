"""Panels of caption choice: accuracy by pattern, and the items that only one of two models got right."""

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
from vfm.eval.encode.image_panels import CaptionedImage, images_panel
from vfm.interfaces import ChoiceDataset, Context, TablePanel
from vfm.statistics import stratified_mean

FLIPS_SHOWN = 8  # items per sheet


def pattern_panel(ctx: Context, choices: ChoiceLogits, correct: Mapping[str, NDArray[np.bool_]]) -> None:
    """Write a table with a row per model and a column per pattern, as the papers print it."""
    rows: list[list[str | float | int | None]] = [
        ["items", *(int((choices.patterns == p).sum()) for p in range(len(choices.names))), len(choices.items)]
    ]
    for model, hits in correct.items():
        shares = [round(100 * float(hits[choices.patterns == p].mean()), 1) for p in range(len(choices.names))]
        rows.append([model, *shares, round(100 * stratified_mean(hits, choices.patterns), 1)])
    columns = ["model", *choices.names, "mean over patterns"]
    ctx.panel(TablePanel(title="By pattern, % right", order=30, columns=columns, rows=rows))


def flip_panels(
    ctx: Context, data: ChoiceDataset, choices: ChoiceLogits, rights: Mapping[str, NDArray[np.bool_]]
) -> None:
    """Write a sheet for each later model: items that only it, or only the first model, got right."""
    (baseline, before), *others = rights.items()
    for name, after in others:
        gained = np.flatnonzero(~before.all(axis=1) & after.all(axis=1))
        lost = np.flatnonzero(before.all(axis=1) & ~after.all(axis=1))
        half = FLIPS_SHOWN // 2
        shown_items = [*gained[: FLIPS_SHOWN - min(len(lost), half)], *lost[: FLIPS_SHOWN - min(len(gained), half)]]
        items = _with_images(data, [choices.numbers[p] for p in shown_items])
        flipped = zip(items, before[shown_items], after[shown_items], strict=True)
        shown = [picture for item in flipped for picture in _flipped(*item)]
        note = f"{len(gained)} won and {len(lost)} lost against {baseline}; under each image its statement."
        title = f"Items that flipped from {baseline} to {name}"
        ctx.panel(images_panel(ctx.directory, f"flipped-{name}", title, shown, note=note, order=60))


def _with_images(data: ChoiceDataset, numbers: Sequence[int]) -> list[Choice]:
    """Return some items of a dataset; the images of all of them would not fit in memory."""
    last = max(numbers, default=-1)
    found = {number: item for number, item in enumerate(islice(load_choices(data), last + 1)) if number in numbers}
    return [found[number] for number in numbers]


def _flipped(item: Choice, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> list[CaptionedImage]:
    """Return the images of an item with their statements, and the outcome of each model."""
    shown = []
    for place, data in enumerate(item.images):
        own = [s for s, image in enumerate(item.truth) if image == place]
        words = " / ".join(f"“{item.statements[s]}”" for s in own) or "no statement"
        which = own[0] if own and len(before) == len(item.statements) else 0
        caption = f"{item.pattern}: {words} · {_word(before[which])} → {_word(after[which])}"
        shown.append(CaptionedImage(Image.open(BytesIO(data)), caption, bool(after[which])))
    return shown


def _word(right: bool) -> str:
    return "right" if right else "wrong"
