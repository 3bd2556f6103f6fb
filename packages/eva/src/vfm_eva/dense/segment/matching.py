"""Assign queries to objects with the least total cost of classes and masks.

Predictions of all depths are matched together, so that the objects are sampled at the points only once.

Sources: Carion et al. 2020, DETR (arXiv:2005.12872), section 3.1, with the costs of Cheng et al. 2022, Mask2Former
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
from vfm_eva.dense.segment.queries import QueryPredictions


@dataclass(frozen=True)
class LossWeights:
    """Weights of the costs and losses.

    They are for the class cross-entropy, the mask cross-entropy, dice, and the class `none`.
    """

    classes: float
    mask: float
    dice: float
    none: float


@torch.no_grad()
def match(
    predictions: Sequence[QueryPredictions],
    labels: Sequence[Tensor],
    masks: Sequence[Tensor],
    points: Tensor,
    weights: LossWeights,
) -> Tensor:
    """Match each object of a batch to a query of its image, at each depth.

    Args:
        predictions: Predictions at L depths.
        labels: Classes of each image's objects, (M,).
        masks: Masks of each image's objects, (M, S, S), floating point.
        points: Points at which masks are compared, (B, P, 2).
        weights: Weights of the costs.

    Returns:
        The query of each object, (L, objects of all images).

    Raises:
        ValueError: If an image has more objects than queries.
    """
    num_queries = predictions[0].masks.shape[1]
    if max(map(len, labels), default=0) > num_queries:
        raise ValueError(f"expected at most {num_queries} objects an image, one for each query")
    costs: list[Tensor] = []
    for image, (known, mask) in enumerate(zip(labels, masks, strict=True)):
        image_points = points[image : image + 1]
        predicted = torch.stack([depth.masks[image] for depth in predictions]).float()  # (L, Q, H, W)
        sampled = many_at_points(predicted.flatten(0, 1), image_points[0]).view(*predicted.shape[:2], -1)
        probabilities = torch.stack([depth.classes[image] for depth in predictions]).float().softmax(dim=-1)
        pair_costs = mask_costs(sampled, at_points(mask, image_points), weights)  # (L, Q, M)
        costs.append(pair_costs - weights.classes * probabilities[:, :, known])
    queries = []
    for image_costs in _on_cpu(costs):
        queries.append(np.stack(list(map(_assign, image_costs))))
    return torch.from_numpy(np.concatenate(queries, axis=1)).to(points.device, non_blocking=True)


def _assign(cost: NDArray[np.float32]) -> NDArray[np.int64]:
    """Find the query of each object for costs (Q, M)."""
    queries = np.empty(cost.shape[1], dtype=np.int64)
    query, matched_object = linear_sum_assignment(cost)
    queries[matched_object] = query
    return queries


def mask_costs(scores: Tensor, true: Tensor, weights: LossWeights) -> Tensor:
    """Compute the costs of pairing each predicted mask with each true mask.

    Args:
        scores: Predicted scores at the points, (..., Q, P).
        true: Values of the true masks at the points, (M, P).
        weights: Weights of cross-entropy and dice.

    Returns:
        (..., Q, M).
    """
    # -t log s(x) - (1 - t) log(1 - s(x)) = softplus(x) - t x: the cross-entropy needs a single matrix product.
    entropy = (F.softplus(scores).sum(dim=-1, keepdim=True) - _products(scores, true)) / scores.shape[-1]
    probabilities = scores.sigmoid()
    both = probabilities.sum(dim=-1, keepdim=True) + true.sum(dim=-1)
    # The ones keep the ratio finite for empty masks, as in MaskFormer's code.
    dice = 1 - (2 * _products(probabilities, true) + 1) / (both + 1)
    return weights.mask * entropy + weights.dice * dice


def _products(scores: Tensor, true: Tensor) -> Tensor:
    """Compute `scores @ true.T`, in an order that does not copy the memory layout of `many_at_points`."""
    return (true @ scores.mT).mT


def _on_cpu(costs: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Copy the costs to arrays in a single transfer. Values that are not finite become the largest float."""
    if costs:
        flat = torch.cat([cost.flatten() for cost in costs]).float()
    else:
        flat = torch.zeros(0)
    largest = torch.finfo(flat.dtype).max
    # scipy refuses NaN and infinity. The loss of such a step is not finite either, so the loop stops there.
    values = torch.nan_to_num(flat, nan=largest, posinf=largest, neginf=largest).cpu().numpy()
    arrays = []
    start = 0
    for cost in costs:
        arrays.append(values[start : start + cost.numel()].reshape(cost.shape))
        start += cost.numel()
    return arrays
