"""Panels of `eval.video`: recall by class, and film strips of videos that are recognised and that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vfm.data import BadSample
from vfm.data.videos import VideoSource
from vfm.data.videos.panels import strip_of, strips_panel
from vfm.interfaces import Context, ModelResult, TablePanel, VideoDataset

CLASSES_SHOWN = 20
NUM_STRIPS = 6


def add_class_panel(
    ctx: Context, data: VideoDataset, labels: NDArray[np.int64], results: Mapping[str, ModelResult]
) -> None:
    """Add the table of the classes with the lowest recall by the last model, with what they are taken for."""
    predicted = {name: np.asarray(one.predictions["videos"]["predicted"]) for name, one in results.items()}
    last, present = list(predicted.values())[-1], np.unique(labels)
    recall = {
        name: np.array([100 * (one[labels == c] == c).mean() for c in present]) for name, one in predicted.items()
    }
    rows: list[list[str | float | int | None]] = []
    for place in np.argsort(recall[list(recall)[-1]], kind="stable")[:CLASSES_SHOWN].tolist():
        label = int(present[place])
        wrong = last[(labels == label) & (last != label)]
        most = int(np.bincount(wrong).argmax()) if len(wrong) else -1
        taken = f"{data.class_names[most]} ({int((wrong == most).sum())})" if most >= 0 else ""
        shares = [round(float(values[place]), 1) for values in recall.values()]
        rows.append([data.class_names[label], int((labels == label).sum()), *shares, taken])
    columns = ["class", "videos", *(f"{name}, % right" for name in recall), f"taken for, by {list(recall)[-1]}"]
    ctx.panel(TablePanel(title="Hardest classes", order=40, columns=columns, rows=rows))


def add_strips(
    ctx: Context,
    source: VideoSource,
    numbers: Sequence[int],
    labels: NDArray[np.int64],
    data: VideoDataset,
    model: str,
    result: ModelResult,
) -> None:
    """Add film strips of videos that a model recognises, and of those that it gets wrong, the surest first."""
    table = result.predictions["videos"]
    predicted, sure = np.asarray(table["predicted"]), np.asarray(table["probability"])
    order = np.argsort(-sure, kind="stable")
    parts = {"right": order[predicted[order] == labels[order]], "wrong": order[predicted[order] != labels[order]]}
    for number, (name, places) in enumerate(parts.items()):
        strips, shown = [], set()
        for place in places.tolist():
            label, guess = data.class_names[labels[place]], data.class_names[predicted[place]]
            if label in shown:
                continue
            text = f"{label}, {sure[place]:.0%}"
            if name == "wrong":
                text = f"{label}, taken for {guess}, {sure[place]:.0%}"
            try:
                strips.append((strip_of(source[numbers[place]]), text))
            except BadSample:  # it was readable a moment ago
                continue
            shown.add(label)
            if len(strips) == NUM_STRIPS:
                break
        if strips:
            seen = result.details["order"]
            shown_as = (
                "frames from left to right" if seen == "forward" else f"their true order; the model saw them {seen}"
            )
            note = f"Videos that {model} gets {name}, one of a class, the surest first; {shown_as}."
            title = "Recognised" if name == "right" else "Not recognised"
            ctx.panel(strips_panel(ctx, name, title, strips, order=50 + number, note=note))
