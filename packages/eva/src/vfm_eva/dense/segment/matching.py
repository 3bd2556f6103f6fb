"""Assignment of queries to objects: the one with the least total cost of classes and masks.

The objects are sampled at the points once, for the predictions of all depths, which are matched together.

Source: Carion et al. 2020, DETR (arXiv:2005.12872), section 3.1; costs of Cheng et al. 2022, Mask2Former
(arXiv:2112.01527), section 3.3.
"""

# L depths, B images, Q queries, M objects of an image, P points, H and W rows and columns of masks

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from vfm_eva.dense.segment.points import at_points, many_at_points
from vfm_eva.dense.segment.queries import Predictions


@dataclass(frozen=True)
class LossWeights:
    """Weights of the costs and losses: cross-entropy of the class, of the mask, dice; and of the class `none`."""

    classes: float
    mask: float
    dice: float
    none: float


@torch.no_grad()
def match(
    predictions: Sequence[Predictions],
    labels: Sequence[Tensor],
    masks: Sequence[Tensor],
    points: Tensor,
    weights: LossWeights,
) -> Tensor:
    """Match each object of a batch to a query of its image, at each depth.

    Args:
        predictions: of L depths.
        labels: classes of the objects of each image, (M,).
        masks: of the objects of each image, (M, S, S), floating point.
        points: at which masks are compared, (B, P, 2).
        weights: of the costs.

    Returns:
        The query of each object, (L, objects of all images).

    Raises:
        ValueError: an image has more objects than there are queries.
    """
    num_queries = predictions[0].masks.shape[1]
    if any(len(one) > num_queries for one in labels):
        raise ValueError(f"expected at most {num_queries} objects an image, one for each query")
    costs: list[Tensor] = []
    for image, (known, mask) in enumerate(zip(labels, masks, strict=True)):
        one = points[image : image + 1]
        found = torch.stack([depth.masks[image] for depth in predictions]).float()  # (L, Q, H, W)
        sampled = many_at_points(found.flatten(0, 1), one[0]).view(*found.shape[:2], -1)
        chances = torch.stack([depth.classes[image] for depth in predictions]).float().softmax(dim=-1)
        paired = mask_costs(sampled, at_points(mask, one), weights)
        costs.append(paired - weights.classes * chances[:, :, known])
    queries = [np.stack([_assign(cost) for cost in one]) for one in _on_cpu(costs)]
    return torch.from_numpy(np.concatenate(queries, axis=1)).to(points.device, non_blocking=True)


def _assign(cost: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the query of each object for costs (Q, M)."""
    queries = np.empty(cost.shape[1], dtype=np.int64)
    query, place = linear_sum_assignment(cost)
    queries[place] = query
    return queries


def mask_costs(scores: Tensor, true: Tensor, weights: LossWeights) -> Tensor:
    """Return the costs of pairing each predicted with each true mask.

    Args:
        scores: at the points, (..., Q, P).
        true: values of the true masks at the points, (M, P).
        weights: of cross-entropy and dice.

    Returns:
        (..., Q, M).
    """
    # -t log s(x) - (1 - t) log(1 - s(x)) = softplus(x) - t x: one product of matrices for the cross-entropy.
    entropy = (F.softplus(scores).sum(dim=-1, keepdim=True) - _products(scores, true)) / scores.shape[-1]
    chances = scores.sigmoid()
    both = chances.sum(dim=-1, keepdim=True) + true.sum(dim=-1)
    dice = 1 - (2 * _products(chances, true) + 1) / (both + 1)
    return weights.mask * entropy + weights.dice * dice


def _products(scores: Tensor, true: Tensor) -> Tensor:
    """Return `scores @ true.T`; in this order `many_at_points`' layout is not copied."""
    return (true @ scores.mT).mT


def _on_cpu(costs: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Return the costs as arrays, with one wait for the device; numbers that are not finite become the largest."""
    flat = torch.cat([one.flatten() for one in costs]).float() if costs else torch.zeros(0)
    largest = torch.finfo(flat.dtype).max
    values = torch.nan_to_num(flat, nan=largest, posinf=largest, neginf=largest).cpu().numpy()
    ends = np.cumsum([0, *(one.numel() for one in costs)])
    return [values[a:b].reshape(one.shape) for a, b, one in zip(ends[:-1], ends[1:], costs, strict=True)]
