"""The federated loss for large vocabularies. A batch trains the classes it contains and some drawn negatives."""

# K classes

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def draw_order(weights: NDArray[np.float64], seed: int, step: int) -> Tensor:
    """Draw a random order of the classes for a step, (K,). Classes with weight 0 come last.

    The first n classes are n draws without replacement, with probabilities proportional to the weights. The order
    depends on seed and step only, so all processes and micro-batches of a step draw the same negatives.

    Args:
        weights: Weight of each class, (K,), such as the square root of its number of images.
        seed: Seed of the training run.
        step: Optimizer step.
    """
    # The arrival order of exponential clocks with these rates is weighted sampling without replacement.
    waits = np.random.default_rng((seed, step)).exponential(size=len(weights))
    times = np.divide(waits, weights, out=np.full(len(weights), np.inf), where=weights > 0)
    return torch.from_numpy(np.argsort(times, kind="stable"))


def federated_mask(present: Tensor, order: Tensor, num_classes: int, minimum: int) -> Tensor:
    """Select the classes that count in a batch.

    They are the classes of the batch's boxes, filled up to `minimum` with negatives.

    Args:
        present: Labels of the batch's boxes, of any number. `num_classes` is the background. It counts as one of the
            `minimum`, as in the released code.
        order: Order of the classes from `draw_order`.
        num_classes: Number of classes, K.
        minimum: Number of classes to fill up to.

    Returns:
        (K,) bool.

    Source: Zhou et al. 2021, CenterNet2 (arXiv:2103.07461), appendix.
    """
    # The last place is for the background, whose label is K.
    counted = torch.zeros(num_classes + 1, dtype=torch.bool, device=order.device)
    counted[present] = True
    number = max(0, minimum - int(counted.sum()))
    negatives = order[~counted[order]][:number]
    counted[negatives] = True
    return counted[:num_classes]
