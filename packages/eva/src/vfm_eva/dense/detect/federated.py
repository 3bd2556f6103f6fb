"""The federated loss of large vocabularies: only some classes of a batch count, drawn by how frequent they are."""

# K classes

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def draw_order(weights: NDArray[np.float64], seed: int, step: int) -> Tensor:
    """Return all classes in a random order for a step, (K,); those of weight 0 are last.

    The first n of them are n draws without replacement with chances in proportion to the weights. The order depends on
    seed and step only, so all processes and micro-batches of a step draw the same negatives.

    Args:
        weights: of each class, (K,), such as the square root of its number of images.
        seed: of the training.
        step: of the optimizer.
    """
    waits = np.random.default_rng((seed, step)).exponential(size=len(weights))
    times = np.divide(waits, weights, out=np.full(len(weights), np.inf), where=weights > 0)
    return torch.from_numpy(np.argsort(times, kind="stable"))


def federated_mask(present: Tensor, order: Tensor, num_classes: int, minimum: int) -> Tensor:
    """Return which classes count, (K,) bool: those of a batch, and negatives up to `minimum`.

    Args:
        present: labels of the batch's boxes in any number; `num_classes` is the background, which is counted as one of
            the `minimum`, as in the released code.
        order: of the classes, from `draw_order`.
        num_classes: K.
        minimum: number of classes that count.

    Source: Zhou et al. 2021, CenterNet2 (arXiv:2103.07461), appendix.
    """
    found = torch.zeros(num_classes + 1, dtype=torch.bool, device=order.device)
    found[present] = True
    number = max(0, minimum - int(found.sum()))
    negatives = order[~found[order]][:number]
    found[negatives] = True
    return found[:num_classes]
