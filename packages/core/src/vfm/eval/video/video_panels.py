"""Draw the recall by class of `eval.video`, and film strips of recognised and misclassified videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vfm.data import BadSample
from vfm.data.videos import VideoSource
from vfm.data.videos.panels import strip_of, strips_panel
from vfm.interfaces import Context, ModelResult, TablePanel, VideoDataset

CLASSES_SHOWN = 20  # a longer table is not read
NUM_STRIPS = 6  # videos of the panel


def add_class_panel(
    ctx: Context, data: VideoDataset, labels: NDArray[np.int64], results: Mapping[str, ModelResult]
) -> None:
    """Add a table of the classes with the lowest recall by the last model, with their most frequent confusion.

    Args:
        ctx: Context of the stage.
        data: The videos.
        labels: Class of each video, (N,).
        results: Results by model.
    """
    predicted = {}
    recall = {}
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    for name, result in results.items():
        guesses = np.asarray(result.predictions["videos"]["predicted"])
        predicted[name] = guesses
        recall[f"{name}, % right"] = 100 * (np.bincount(labels, guesses == labels) / np.maximum(1, counts))  # (C,)
    last = list(predicted.values())[-1]
    by_last_model = list(recall.values())[-1][present]
    rows: list[list[str | float | int | None]] = []
    for label in present[np.argsort(by_last_model, kind="stable")][:CLASSES_SHOWN].tolist():
        wrong = last[(labels == label) & (last != label)]
        most = int(np.bincount(wrong).argmax()) if len(wrong) else -1
        if most >= 0:
            taken = f"{data.class_names[most]} ({int((wrong == most).sum())})"
        else:
            taken = ""
        shares = [round(float(values[label]), 1) for values in recall.values()]
        rows.append([data.class_names[label], int(counts[label]), *shares, taken])
    columns = ["class", "videos", *recall, f"taken for, by {list(predicted)[-1]}"]
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
    """Add film strips of videos that a model recognises or misclassifies, the most confident first.

    Args:
        ctx: Context of the stage.
        source: The videos.
        numbers: Numbers of the videos.
        labels: Class of each video, (N,).
        data: Dataset with the class names.
        model: Name of the model.
        result: Result of the model.
    """
    table = result.predictions["videos"]
    predicted = np.asarray(table["predicted"])
    sure = np.asarray(table["probability"])
    order = np.argsort(-sure, kind="stable")
    parts = {"right": order[predicted[order] == labels[order]], "wrong": order[predicted[order] != labels[order]]}
    for number, (name, indices) in enumerate(parts.items()):
        strips = []
        shown = set()
        for index in indices.tolist():
            label = data.class_names[labels[index]]
            guess = data.class_names[predicted[index]]
            if label in shown:
                continue
            text = f"{label}, {sure[index]:.0%}"
            if name == "wrong":
                text = f"{label}, taken for {guess}, {sure[index]:.0%}"
            try:
                strips.append((strip_of(source[numbers[index]]), text))
            except BadSample:  # it was readable a moment ago
                continue
            shown.add(label)
            if len(strips) == NUM_STRIPS:
                break
        if strips:
            seen = result.details["order"]
            shown_as = "frames from left to right"
            if seen != "forward":
                shown_as = f"their true order; the model saw them {seen}"
            note = f"Videos that {model} gets {name}, one of a class, the surest first; {shown_as}."
            title = "Recognised" if name == "right" else "Not recognised"
            ctx.panel(strips_panel(ctx, name, title, strips, order=50 + number, note=note))
