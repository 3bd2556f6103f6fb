"""The loss of a set of predictions: class and mask of matched queries, class `none` of the others.

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
from vfm_eva.dense.segment.queries import Predictions


@dataclass(frozen=True)
class PointSettings:
    """Points at which masks are compared; see `uncertain_points`."""

    num_points: int
    oversample: float = 3.0
    importance: float = 0.75


@dataclass(frozen=True)
class Totals:
    """By what sums over pairs are divided: objects, and weights of the queries' classes; each of a whole step."""

    objects: Tensor
    weights: Tensor

    @classmethod
    def of(cls, counts: Tensor, num_queries: int, none: float) -> Totals:
        """Return the totals of images with some numbers of objects, (B,)."""
        matched = counts.clamp(max=num_queries).sum()
        return cls(counts.sum(), matched + none * (len(counts) * num_queries - matched))


def set_loss(
    predictions: Sequence[Predictions],
    labels: Sequence[Tensor],
    masks: Sequence[Tensor],
    totals: Totals,
    weights: LossWeights,
    settings: PointSettings,
    draw: Draw = torch.rand,
) -> dict[str, Tensor]:
    """Return the weighted losses `class_loss`, `mask_loss` and `dice_loss`, summed over the depths.

    Args:
        predictions: of L depths.
        labels: classes of the objects of each image, (M,).
        masks: of the objects of each image, (M, S, S), floating point.
        totals: of the step.
        weights: of costs and losses.
        settings: of the points.
        draw: draws the points.
    """
    points = draw(len(labels), settings.num_points, 2, device=predictions[0].masks.device)
    queries = match(predictions, labels, masks, points, weights)  # (L, N)
    image = torch.cat([torch.full_like(one, number) for number, one in enumerate(labels)])
    classes = _class_loss(predictions, torch.cat(list(labels)), image, queries, totals, weights)
    counts = [len(one) for one in labels]
    scores = torch.cat([one.masks_of(query, counts) for one, query in zip(predictions, queries, strict=True)]).float()
    if not len(scores):  # the graph keeps all parameters, which a training in several processes needs
        nothing = scores.sum()
        return {"class_loss": classes, "mask_loss": nothing, "dice_loss": nothing}
    sample, chosen = uncertain_points(
        scores, settings.num_points, oversample=settings.oversample, importance=settings.importance, draw=draw
    )
    # An object is sampled once, for all depths.
    by_depth = chosen.view(*queries.shape, -1)
    true = at_points(torch.cat(list(masks)), sample).expand(len(queries), -1, -1).gather(2, by_depth)
    found = at_points(scores, sample[0, chosen]).view(true.shape)
    entropy = F.binary_cross_entropy_with_logits(found, true, reduction="none").mean(dim=-1).sum()
    chances, objects = found.sigmoid(), totals.objects.clamp(min=1)
    dice = 1 - (2 * (chances * true).sum(dim=-1) + 1) / (chances.sum(dim=-1) + true.sum(dim=-1) + 1)
    return {
        "class_loss": classes,
        "mask_loss": weights.mask * entropy / objects,
        "dice_loss": weights.dice * dice.sum() / objects,
    }


def _class_loss(
    predictions: Sequence[Predictions],
    labels: Tensor,
    image: Tensor,
    queries: Tensor,
    totals: Totals,
    weights: LossWeights,
) -> Tensor:
    """Return the cross-entropy of all queries; those without an object have the class `none`."""
    scores = torch.stack([one.classes for one in predictions]).float()  # (L, B, Q, K + 1)
    none = scores.shape[-1] - 1
    targets = torch.full(scores.shape[:-1], none, device=scores.device)
    depth = torch.arange(len(queries), device=scores.device)[:, None]
    targets[depth, image, queries] = labels
    weight = scores.new_ones(none + 1)
    weight[none] = weights.none
    total = F.cross_entropy(scores.flatten(0, 2), targets.flatten(), weight=weight, reduction="sum")
    return weights.classes * total / totals.weights
