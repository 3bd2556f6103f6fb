"""Federated labels as LVIS has them: each image is labelled for some of its classes, and checked for a few absent ones.

Source: Gupta, Dollár and Girshick 2019, LVIS (arXiv:1908.03195), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LABELLED = 0.8  # share of an image's classes that are labelled
PARTLY = 0.3  # share of the labelled classes with several instances, of which one is left out
NUM_NEGATIVES = 5  # absent classes that are listed


@dataclass(frozen=True)
class Federated:
    """The labels of one image.

    Attributes:
        kept: numbers of the objects that are annotated.
        negatives: classes that were checked and are absent.
        not_exhaustive: classes of which not all instances are annotated.
    """

    kept: list[int]
    negatives: list[int]
    not_exhaustive: list[int]


def federate(labels: Sequence[int], num_classes: int, rng: np.random.Generator) -> Federated:
    """Draw the labels of an image from the class of each of its objects."""
    kept: list[int] = []
    partly: list[int] = []
    for label in sorted(set(labels)):
        places = [place for place, one in enumerate(labels) if one == label]
        labelled, drops = rng.random() < LABELLED, rng.random() < PARTLY
        if not labelled:
            continue
        if drops and len(places) > 1:
            partly.append(label)
            places = places[:-1]
        kept += places
    absent = np.setdiff1d(np.arange(num_classes), labels)
    negatives = rng.permutation(absent)[:NUM_NEGATIVES]
    return Federated(sorted(kept), sorted(map(int, negatives)), partly)
