"""Caption choice to look at: a table by pattern, and the items that flipped between two models."""

# P items, S statements

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.data.choices import Choice
from vfm.eval.judges.choice_scores import Scored
from vfm.eval.pictures import Shown, images_panel
from vfm.eval.statistics import stratified_mean
from vfm.panels import TablePanel
from vfm.stage import Context

FLIPS_SHOWN = 8  # items a sheet


def pattern_panel(ctx: Context, scored: Scored, correct: Mapping[str, NDArray[np.bool_]]) -> None:
    """A row a model, a column a pattern, as the papers print it."""
    rows: list[list[str | float | int | None]] = [
        ["items", *(int((scored.patterns == p).sum()) for p in range(len(scored.names))), len(scored.items)]
    ]
    for model, hits in correct.items():
        shares = [round(100 * float(hits[scored.patterns == p].mean()), 1) for p in range(len(scored.names))]
        rows.append([model, *shares, round(100 * stratified_mean(hits, scored.patterns), 1)])
    columns = ["model", *scored.names, "mean over patterns"]
    ctx.panel(TablePanel(title="By pattern, % right", order=30, columns=columns, rows=rows))


def flip_panels(ctx: Context, scored: Scored, rights: Mapping[str, NDArray[np.bool_]]) -> None:
    """For each later model the items that only it, or only the first one, got right, pictures and statements."""
    (baseline, before), *others = rights.items()
    for name, after in others:
        gained = np.flatnonzero(~before.all(axis=1) & after.all(axis=1))
        lost = np.flatnonzero(before.all(axis=1) & ~after.all(axis=1))
        half = FLIPS_SHOWN // 2
        chosen = [*gained[: FLIPS_SHOWN - min(len(lost), half)], *lost[: FLIPS_SHOWN - min(len(gained), half)]]
        shown = [picture for p in chosen for picture in _flipped(scored.items[p], before[p], after[p])]
        note = f"{len(gained)} won and {len(lost)} lost against {baseline}; under each picture its statement."
        title = f"Items that flipped from {baseline} to {name}"
        ctx.panel(images_panel(ctx.directory, f"flipped-{name}", title, shown, note=note, order=60))


def _flipped(item: Choice, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> list[Shown]:
    """The pictures of an item with their statements, and how each model judged it."""
    shown = []
    for place, data in enumerate(item.images):
        own = [s for s, image in enumerate(item.truth) if image == place]
        words = " / ".join(f"“{item.statements[s]}”" for s in own) or "no statement"
        which = own[0] if own and len(before) == len(item.statements) else 0
        caption = f"{item.pattern}: {words} · {_word(before[which])} → {_word(after[which])}"
        shown.append(Shown(Image.open(BytesIO(data)), caption))
    return shown


def _word(right: bool) -> str:
    return "right" if right else "wrong"
