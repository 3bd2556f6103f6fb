"""Confusions of a classifier: a matrix of few classes, the most frequent pairs of many."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import confusion_matrix

from vfm.eval.classify.classification_panels import CONFUSIONS, confusion_panel


def test_the_matrix_of_few_classes_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    panel = confusion_panel(list("abcde"), labels, predicted, "clip")
    assert panel.columns == ["class", *"abcde"]
    assert [row[1:] for row in panel.rows] == confusion_matrix(labels, predicted).tolist()


def test_of_many_classes_the_most_frequent_pairs_are_listed() -> None:
    rng = np.random.default_rng(1)
    names = [f"class {c}" for c in range(40)]
    labels, predicted = rng.integers(0, 40, 4000), rng.integers(0, 40, 4000)
    matrix = confusion_matrix(labels, predicted)
    totals = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    panel = confusion_panel(names, labels, predicted, "clip")
    assert len(panel.rows) == CONFUSIONS
    assert [row[2] for row in panel.rows] == sorted(matrix.ravel(), reverse=True)[:CONFUSIONS]
    for label, guess, count, share in panel.rows:
        true, taken = names.index(str(label)), names.index(str(guess))
        assert count == matrix[true, taken]
        assert share == round(100 * count / totals[true], 1)
