"""Nearest-neighbour classification: how well features group the classes, with nothing trained.

Source: Wu et al. 2018 (arXiv:1805.01978) as used by DINO, Caron et al. 2021 (arXiv:2104.14294): cosine, k = 20,
each neighbour votes for its class with weight exp(cosine / 0.07).
"""

# N training images, Q test images, C classes, D width

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vfm.eval.ranking import MAX_SCORES, row_blocks


def knn_votes(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    max_scores: int = MAX_SCORES,
) -> Tensor:
    """Votes of the `k` nearest training images for each class, (Q, num_classes); the highest is the prediction.

    Memory is bounded by `max_scores` similarities, not Q x N.

    Args:
        train_features: (N, D), normalised or not.
        train_labels: (N,) integers in 0..num_classes-1; or which labels an image has, (N, C) bool: a neighbour then
            votes for each of its own.
        test_features: (Q, D).
        num_classes: C.
        k: neighbours that vote; all of them where there are fewer.
        temperature: small values let the nearest decide.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k must be at least 1 and temperature positive, got {k} and {temperature}")
    train, test = F.normalize(train_features, dim=-1), F.normalize(test_features, dim=-1)
    k = min(k, len(train))
    votes = torch.zeros(len(test), num_classes, device=test.device)
    for block in row_blocks(len(test), len(train), max_scores):
        cosines, neighbours = (test[block] @ train.T).topk(k, dim=1)  # (rows, k)
        # Relative to the nearest, so that exp cannot overflow at a small temperature; votes scale by one factor.
        weights = ((cosines - cosines[:, :1]) / temperature).exp()
        if train_labels.ndim == 2:
            votes[block] = (weights[..., None] * train_labels[neighbours]).sum(dim=1)
        else:
            votes[block].scatter_add_(1, train_labels[neighbours], weights)
    return votes
