"""Class and mask losses of matched queries. Other queries are trained as class `none`.

Source: Cheng et al. 2022, Mask2Former (arXiv:2112.01527), section 3.3, summed over the predictions of all depths.
"""

# L depths, B images, Q queries, K classes, M objects of an image, N of a batch, P points

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vfm_eva.dense.segment.matching import LossWeights, match
from vfm_eva.dense.segment.points import Draw, at_points, uncertain_points
from vfm_eva.dense.segment.queries import QueryPredictions


@dataclass(frozen=True)
class PointSettings:
    """Number and choice of the points at which masks are compared. See `uncertain_points`."""

    num_points: int
    oversample: float = 3.0
    importance: float = 0.75


@dataclass(frozen=True)
class Totals:
    """Divisors of the loss sums over a whole step.

    They are the number of objects, and the total class weight of the queries.
    """

    objects: Tensor
    weights: Tensor

    @classmethod
    def of(cls, counts: Tensor, num_queries: int, none: float) -> Totals:
        """Compute the totals of a batch.

        Args:
            counts: Number of objects in each image, (B,).
            num_queries: Number of queries.
            none: Weight of the class `none`.
        """
        matched = counts.clamp(max=num_queries).sum()
        return cls(counts.sum(), matched + none * (len(counts) * num_queries - matched))


def set_loss(
    predictions: Sequence[QueryPredictions],
    labels: Sequence[Tensor],
    masks: Sequence[Tensor],
    totals: Totals,
    weights: LossWeights,
    settings: PointSettings,
    draw: Draw = torch.rand,
) -> dict[str, Tensor]:
    """Compute the weighted losses `class_loss`, `mask_loss` and `dice_loss`, summed over the depths.

    Args:
        predictions: Predictions at L depths.
        labels: Classes of each image's objects, (M,).
        masks: Masks of each image's objects, (M, S, S), floating point.
        totals: Divisors for the whole step.
        weights: Weights of costs and losses.
        settings: Number and choice of points.
        draw: Draws the points.
    """
    points = draw(len(labels), settings.num_points, 2, device=predictions[0].masks.device)
    queries = match(predictions, labels, masks, points, weights)  # (L, N)
    # Image of each object, to address its query in the batch.
    image = torch.cat([torch.full_like(classes, number) for number, classes in enumerate(labels)])
    class_loss = _class_loss(predictions, torch.cat(list(labels)), image, queries, totals, weights)
    counts = list(map(len, labels))
    matched_masks = [depth.masks_of(query, counts) for depth, query in zip(predictions, queries, strict=True)]
    scores = torch.cat(matched_masks).float()  # (L N, H, W)
    if not len(scores):  # a sum keeps all parameters in the graph, as training in several processes needs
        zero = scores.sum()
        return {"class_loss": class_loss, "mask_loss": zero, "dice_loss": zero}
    sample, chosen = uncertain_points(
        scores, settings.num_points, oversample=settings.oversample, importance=settings.importance, draw=draw
    )
    # Each object is sampled once for all depths.
    by_depth = chosen.view(*queries.shape, -1)  # (L, N, P)
    true = at_points(torch.cat(list(masks)), sample).expand(len(queries), -1, -1).gather(2, by_depth)
    predicted = at_points(scores, sample[0, chosen]).view(true.shape)  # (L, N, P)
    entropy = F.binary_cross_entropy_with_logits(predicted, true, reduction="none").mean(dim=-1).sum()
    probabilities = predicted.sigmoid()
    objects = totals.objects.clamp(min=1)
    both = probabilities.sum(dim=-1) + true.sum(dim=-1)
    dice = 1 - (2 * (probabilities * true).sum(dim=-1) + 1) / (both + 1)
    return {
        "class_loss": class_loss,
        "mask_loss": weights.mask * entropy / objects,
        "dice_loss": weights.dice * dice.sum() / objects,
    }


def _class_loss(
    predictions: Sequence[QueryPredictions],
    labels: Tensor,
    image: Tensor,
    queries: Tensor,
    totals: Totals,
    weights: LossWeights,
) -> Tensor:
    """Compute the cross-entropy of all queries, with class `none` for queries without an object."""
    scores = torch.stack([depth.classes for depth in predictions]).float()  # (L, B, Q, K + 1)
    none = scores.shape[-1] - 1
    targets = torch.full(scores.shape[:-1], none, device=scores.device)
    depth = torch.arange(len(queries), device=scores.device)[:, None]
    targets[depth, image, queries] = labels
    weight = F.pad(scores.new_ones(none), (0, 1), value=weights.none)
    total = F.cross_entropy(scores.flatten(0, 2), targets.flatten(), weight=weight, reduction="sum")
    return weights.classes * total / totals.weights
