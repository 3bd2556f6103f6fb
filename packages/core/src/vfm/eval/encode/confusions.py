"""Confusion matrices, and the most frequent confusions where there are too many classes for a matrix."""

# N pairs of a true and a predicted class, C classes

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vfm.interfaces import TablePanel

MATRIX_CLASSES = 12  # most classes of a confusion matrix, which fits a page; of more classes pairs are listed
CONFUSIONS = 15  # pairs listed


def confusion_panel(
    names: Sequence[str], labels: ArrayLike, predicted: ArrayLike, model: str, *, unit: str = "images", note: str = ""
) -> TablePanel:
    """Build the confusion matrix of a model, or of more than `MATRIX_CLASSES` classes the most frequent confusions.

    Args:
        names: Names of the C classes.
        labels: true class of each pair, (N,).
        predicted: Predicted class of each pair, (N,).
        model: Name of the model.
        unit: What is classified.
        note: More about the pairs, a sentence.
    """
    pairs, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    rows: list[list[str | float | int | None]] = []
    classes = np.unique(pairs)
    if len(classes) <= MATRIX_CLASSES:
        matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
        matrix[tuple(np.searchsorted(classes, pairs))] = counts
        shown = [names[label] for label in classes]
        for name, counts_of_label in zip(shown, matrix.tolist(), strict=True):
            rows.append([name, *counts_of_label])
        columns = ["class", *shown]
        note = f"{unit.capitalize()} by class (rows) and by the prediction of {model} (columns). {note}".strip()
        return TablePanel(title="Confusion matrix", note=note, order=41, columns=columns, rows=rows)
    totals = np.bincount(np.asarray(labels), minlength=len(names))
    wrong = np.flatnonzero(pairs[0] != pairs[1])
    for k in wrong[np.argsort(-counts[wrong], kind="stable")[:CONFUSIONS]]:
        label, guess = pairs[:, k]
        share = round(100 * float(counts[k] / totals[label]), 1)
        rows.append([names[label], names[guess], int(counts[k]), share])
    columns = ["class", "taken for", unit, "% of the class"]
    note = f"Of {model}. {note}".strip()
    return TablePanel(title="Most frequent confusions", note=note, order=41, columns=columns, rows=rows)
