"""Nearest-neighbour classification of features, without any training.

Source: Wu et al. 2018 (arXiv:1805.01978), as used by DINO, Caron et al. 2021 (arXiv:2104.14294). Similarity is the
cosine, k is 20, and each neighbour votes for its class with weight exp(cosine / 0.07).
"""

# N training images, Q test images, C classes, D width

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vfm.eval.classify.checks import check_same_classes
from vfm.eval.classify.classification import encode_with_targets, result_from_scores
from vfm.eval.classify.classification_panels import add_class_panels
from vfm.eval.classify.stages import Knn
from vfm.eval.encode.hashes import data_hash, warn_of_overlap
from vfm.eval.encode.ranking import MAX_SCORES, row_blocks
from vfm.interfaces import Context, Evaluated
from vfm.models import ImageEncoder
from vfm.train.parallel.sharing import leave_to_first


def evaluate_knn(config: Knn, ctx: Context, encoders: Mapping[str, ImageEncoder]) -> Evaluated:
    """Evaluate features by letting the nearest training images vote for their class or for each of their labels."""
    train = ctx.load(config.train)
    data = ctx.load(config.data)
    check_same_classes(config, train, data)
    known, known_targets = encode_with_targets(ctx, encoders, train, config.reading)
    test, targets = encode_with_targets(ctx, encoders, data, config.reading)
    leave_to_first()
    warn_of_overlap(ctx, known.image_digests, test.image_digests)
    details = {"k": config.k, "temperature": config.temperature, "train_sha256": data_hash(train, known.digests)}
    results = {}
    for name in encoders:
        votes = knn_votes(
            known.features[name],
            known_targets,
            test.features[name],
            num_classes=len(data.class_names),
            k=config.k,
            temperature=config.temperature,
        )
        results[name] = result_from_scores(votes.numpy(), targets, test.keys, data, "knn_", details)
    add_class_panels(ctx, data, test, targets, results)
    return Evaluated(data_hash(data, test.digests), results)


def knn_votes(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    *,
    num_classes: int,
    k: int,
    temperature: float,
    max_scores: int = MAX_SCORES,
) -> Tensor:
    """Sum the votes of the `k` nearest training images for each class, (Q, num_classes).

    Memory is bounded by `max_scores` similarities, or labels of neighbours, instead of Q x N.

    Args:
        train_features: (N, D), normalised or not.
        train_targets: Classes, (N,) integers in 0..num_classes-1, or labels, (N, C) bool. A neighbour votes for each of
            its labels.
        test_features: (Q, D).
        num_classes: Number of classes, C.
        k: Number of neighbours that vote, all of them if there are fewer.
        temperature: A smaller value gives the nearest neighbours more weight.
        max_scores: Number of similarities held at once.

    Raises:
        ValueError: If `k` or `temperature` is not positive.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k must be at least 1 and temperature positive, got {k} and {temperature}")
    train = F.normalize(train_features, dim=-1)
    test = F.normalize(test_features, dim=-1)
    k = min(k, len(train))
    votes = torch.zeros(len(test), num_classes, device=test.device)
    # With several labels per image, the labels of all neighbours are held too.
    columns = max(len(train), k * num_classes) if train_targets.ndim == 2 else len(train)
    for block in row_blocks(len(test), columns, max_scores):
        # In blocks of test images, as all cosines of ImageNet would take 256 GB.
        cosines, neighbours = (test[block] @ train.T).topk(k, dim=1)  # (rows, k)
        # Relative to the nearest, so that exp cannot overflow at a small temperature. It scales all votes equally.
        weights = ((cosines - cosines[:, :1]) / temperature).exp()
        if train_targets.ndim == 2:
            votes[block] = (weights[..., None] * train_targets[neighbours]).sum(dim=1)
        else:
            votes[block].scatter_add_(1, train_targets[neighbours], weights)
    return votes
