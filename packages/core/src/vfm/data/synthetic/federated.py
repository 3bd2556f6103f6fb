"""Federated labels as in LVIS, for some classes of an image and a few that were checked and are absent.

Source: Gupta, Dollár and Girshick 2019, LVIS (arXiv:1908.03195), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LABELLED = 0.8  # share of an image's classes that are labelled
PARTLY = 0.3  # share of the labelled classes with several instances for which one instance is left out
NUM_NEGATIVES = 5  # absent classes that are listed


@dataclass(frozen=True)
class Federated:
    """The labels of an image.

    Attributes:
        annotated: Numbers of the objects that are annotated.
        negatives: Classes that were checked and are absent.
        not_exhaustive: Classes with some instances that are not annotated.
    """

    annotated: list[int]
    negatives: list[int]
    not_exhaustive: list[int]


def federate(labels: Sequence[int], num_classes: int, rng: np.random.Generator) -> Federated:
    """Draw the labels of an image from the class of each of its objects."""
    annotated: list[int] = []
    partly: list[int] = []
    for label in sorted(set(labels)):
        instances = np.flatnonzero(np.array(labels) == label).tolist()
        labelled = rng.random() < LABELLED
        drops = rng.random() < PARTLY
        if not labelled:
            continue
        if drops and len(instances) > 1:
            partly.append(label)
            instances = instances[:-1]
        annotated += instances
    absent = np.setdiff1d(np.arange(num_classes), labels)
    negatives = rng.permutation(absent)[:NUM_NEGATIVES]
    return Federated(sorted(annotated), sorted(map(int, negatives)), partly)
