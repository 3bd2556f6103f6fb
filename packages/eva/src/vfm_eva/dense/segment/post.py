"""Predictions of queries as classes of pixels, objects, and panoptic maps.

Sources: Cheng et al. 2021, MaskFormer (arXiv:2107.06278), section 3.4; for objects Cheng et al. 2022, Mask2Former
(arXiv:2112.01527). The rules are those of transformers' `EomtImageProcessor`.
"""

# Q queries, K classes, N objects, H and W height and width

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_OBJECTS = 100


class Objects(NamedTuple):
    """Objects of an image: which query each is of, its class and its score, (N,) each, the best first."""

    queries: Tensor
    labels: Tensor
    scores: Tensor


def semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Return the score of each class at each pixel: the sum over the queries of both probabilities.

    Args:
        classes: scores of the classes and of none, (B, Q, K + 1).
        masks: scores, (B, Q, H, W).

    Returns:
        (B, K, H, W).
    """
    return torch.einsum("bqk,bqhw->bkhw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())


def best_objects(classes: Tensor, things: Sequence[bool]) -> Objects:
    """Return the best pairs of a query and a class that has instances; a query may have several classes.

    Args:
        classes: scores of the classes and of none, (Q, K + 1).
        things: whether a class has instances, (K,).
    """
    known = torch.tensor([label for label, is_thing in enumerate(things) if is_thing], device=classes.device)
    chances = classes.softmax(dim=-1)[:, known]
    best = chances.flatten().topk(min(MAX_OBJECTS, chances.numel()))
    return Objects(best.indices // len(known), known[best.indices % len(known)], best.values)


def maskness(masks: Tensor) -> Tensor:
    """Return the mean probability inside each mask, 0 for an empty one, (N, H, W) to (N,)."""
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
    """Return the number of each pixel's segment, -1 for none, (H, W), and the class of each segment.

    A pixel belongs to the query with the largest product of both probabilities, if it is in that query's mask. A query
    that has too small a part of its mask is dropped; queries of one class without instances are one segment.

    Args:
        classes: scores of the classes and of none, (Q, K + 1).
        masks: scores, (Q, H, W).
        things: whether a class has instances, (K,).
        score_threshold: probability of the class above which a query counts.
        overlap_threshold: share of a mask's pixels that must be left to it.
    """
    scores, labels = classes.softmax(dim=-1).max(dim=-1)
    kept = (labels < len(things)) & (scores > score_threshold)
    chances, scores, labels = masks[kept].sigmoid(), scores[kept], labels[kept]
    segments = torch.full(masks.shape[-2:], -1, device=masks.device)
    found: list[int] = []
    regions: dict[int, int] = {}
    owner = (scores[:, None, None] * chances).argmax(dim=0) if len(scores) else segments
    for query, label in enumerate(labels.tolist()):
        own, mask = owner == query, chances[query] >= 0.5
        if not (own & mask).any() or int(own.sum()) / int(mask.sum()) <= overlap_threshold:
            continue
        number = len(found) if things[label] else regions.setdefault(label, len(found))
        if number == len(found):
            found.append(label)
        segments[own & mask] = number
    return segments, torch.tensor(found, dtype=torch.int64)
