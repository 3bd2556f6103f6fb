"""Convert query predictions to pixel classes, objects and panoptic maps.

Sources: Cheng et al. 2021, MaskFormer (arXiv:2107.06278), section 3.4, and for objects Cheng et al. 2022, Mask2Former
(arXiv:2112.01527). The rules follow transformers' `EomtImageProcessor`.
"""

# Q queries, K classes, N objects, H and W height and width

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_OBJECTS = 100  # COCO's limit for an image


class QueryObjects(NamedTuple):
    """Objects of an image, best first.

    Each object has its query, class and score, (N,).
    """

    queries: Tensor
    labels: Tensor
    scores: Tensor


def semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Compute class scores of pixels: the sum over queries of class probability times mask probability.

    Args:
        classes: Scores of the classes and of `none`, (B, Q, K + 1).
        masks: Mask scores, (B, Q, H, W).

    Returns:
        (B, K, H, W).
    """
    return torch.einsum("bqk,bqhw->bkhw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())


def best_objects(classes: Tensor, things: Sequence[bool]) -> QueryObjects:
    """Select the best pairs of a query and a class with instances. A query can have several classes.

    Args:
        classes: Scores of the classes and of `none`, (Q, K + 1).
        things: Whether a class has instances, (K,).
    """
    known = torch.tensor([label for label, is_thing in enumerate(things) if is_thing], device=classes.device)
    probabilities = classes.softmax(dim=-1)[:, known]
    best = probabilities.flatten().topk(min(MAX_OBJECTS, probabilities.numel()))
    return QueryObjects(best.indices // len(known), known[best.indices % len(known)], best.values)


def maskness(masks: Tensor) -> Tensor:
    """Compute the mean probability inside each mask, 0 for an empty mask, (N, H, W) to (N,)."""
    inside = masks > 0
    return (masks.sigmoid() * inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1).clamp(min=1)


def panoptic_map(
    classes: Tensor,
    masks: Tensor,
    things: Sequence[bool],
    *,
    score_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Compute the segment of each pixel, -1 for none, (H, W), and the class of each segment.

    A pixel belongs to the query with the largest product of class and mask probability, if it is in that query's mask.
    A query that keeps too small a share of its mask is dropped. Queries of the same class without instances form a
    single segment.

    Args:
        classes: Scores of the classes and of `none`, (Q, K + 1).
        masks: Mask scores, (Q, H, W).
        things: Whether a class has instances, (K,).
        score_threshold: Class probability above which a query counts.
        overlap_threshold: Share of a mask's pixels that the query must keep.
    """
    scores, labels = classes.softmax(dim=-1).max(dim=-1)
    confident = (labels < len(things)) & (scores > score_threshold)
    probabilities = masks[confident].sigmoid()
    scores = scores[confident]
    labels = labels[confident]
    segments = torch.full(masks.shape[-2:], -1, device=masks.device)
    segment_labels: list[int] = []
    regions: dict[int, int] = {}  # segment of each class without instances
    if len(scores):
        owner = (scores[:, None, None] * probabilities).argmax(dim=0)  # (H, W)
    else:
        owner = segments
    for query, label in enumerate(labels.tolist()):
        owned = owner == query
        mask = probabilities[query] >= 0.5
        # MaskFormer's rule: a segment that others cover for the most part is dropped.
        if not (owned & mask).any() or int(owned.sum()) / int(mask.sum()) <= overlap_threshold:
            continue
        number = len(segment_labels)
        if not things[label]:
            # All pixels of a class without instances, such as sky, are one segment.
            number = regions.setdefault(label, number)
        if number == len(segment_labels):
            segment_labels.append(label)
        segments[owned & mask] = number
    return segments, torch.tensor(segment_labels, dtype=torch.int64)
