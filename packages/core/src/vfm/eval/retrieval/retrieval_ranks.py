"""Ranks of image-text retrieval in both directions, with several captions per image, in bounded memory.

A query is a hit at k if *any* of its correct items is among the first k, as in CLIP, open_clip and CLIP_benchmark.
"""

# N images, M texts, D width

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vfm.eval.encode.ranking import MAX_SCORES, row_blocks, slices, tie_width

TILE_SCORES = 1 << 19  # 256 x 2,048: a tile stays in the processor's cache for all operations on it
TILE_ASPECT = 8  # texts per image of a tile


@dataclass(frozen=True)
class RetrievalRanks:
    """Rank of the best correct item of each query, counted from 0.

    The names are from CLIP_benchmark. `text_retrieval` retrieves a text given an image, (N,). `image_retrieval`
    retrieves the image given a text, (M,).
    """

    text_retrieval: NDArray[np.int64]
    image_retrieval: NDArray[np.int64]


def retrieval_ranks(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, *, max_scores: int = TILE_SCORES
) -> RetrievalRanks:
    """Rank each image's best caption among all captions, and each caption's image among all images.

    Ties count against the query and a NaN is ranked last, as in `ranking.best_ranks`. That function implements one
    direction without tiles. Here each score is computed once, in tiles, and counted in both directions. The scores of
    the M correct pairs are computed first, so each tile can be compared with them at once. Besides the features, memory
    is a few numbers per query and a few times `max_scores`.

    Args:
        image_features: (N, D), normalised or not.
        text_features: (M, D), on the same device.
        image_of_text: Index of the image that each text describes, (M,) in 0..N-1. Every image has a text.
        max_scores: Number of scores held at once.

    Raises:
        ValueError: If an image has no text.
    """
    missing = torch.bincount(image_of_text, minlength=len(image_features)) == 0
    if bool(missing.any()):
        raise ValueError(f"{int(missing.sum())} images have no text, the first is {int(missing.nonzero()[0])}")
    num_images = len(image_features)
    tie = tie_width(image_features.shape[1])
    pair_cosines = own_cosines(image_features, text_features, image_of_text)  # (M,)
    best = pair_cosines.new_full((num_images,), -torch.inf).scatter_reduce(0, image_of_text, pair_cosines, "amax")
    lower_texts, lower_images = (
        torch.zeros_like(best, dtype=torch.int64),
        torch.zeros_like(pair_cosines, dtype=torch.int64),
    )
    rows = max(1, isqrt(max_scores // TILE_ASPECT))
    for some_texts in slices(len(pair_cosines), max(1, max_scores // rows)):
        texts = F.normalize(text_features[some_texts], dim=-1)
        image = image_of_text[some_texts]
        for some_images in slices(num_images, rows):
            scores = F.normalize(image_features[some_images], dim=-1) @ texts.T
            right = ((image >= some_images.start) & (image < some_images.stop)).nonzero()[:, 0]
            scores[image[right] - some_images.start, right] = -torch.inf  # correct items do not count against the query
            lower_texts[some_images] += _count(scores < best[some_images, None] - tie, 1)
            lower_images[some_texts] += _count(scores < pair_cosines[some_texts] - tie, 0)
    # Count "all but the lower" scores instead of "at least as high", so that a NaN on either side counts against it.
    return RetrievalRanks(
        text_retrieval=torch.where(best.isnan(), len(pair_cosines), len(pair_cosines) - lower_texts).cpu().numpy(),
        image_retrieval=torch.where(pair_cosines.isnan(), num_images, num_images - lower_images).cpu().numpy(),
    )


def own_cosines(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, *, max_numbers: int = TILE_SCORES
) -> Tensor:
    """Compute the cosine of each text with its image, in blocks.

    Args:
        image_features: (N, D).
        text_features: (M, D).
        image_of_text: Index of the image of each text, (M,).
        max_numbers: Largest number of numbers in a block.

    Returns:
        (M,).
    """
    cosines = []
    for rows in row_blocks(len(text_features), text_features.shape[1], max_numbers):
        cosines.append(F.cosine_similarity(image_features[image_of_text[rows]], text_features[rows], dim=-1))
    return torch.cat(cosines)


def nearest(queries: Tensor, items: Tensor, k: int, *, max_scores: int = MAX_SCORES) -> NDArray[np.int64]:
    """Find the items with the highest cosine for each query.

    Args:
        queries: (N, D).
        items: (M, D).
        k: Number of items for each query.
        max_scores: Number of scores held at once.

    Returns:
        Indices (N, k), best first.
    """
    # Divide by the lengths instead of normalising a copy of the items, which could be large.
    length = items.norm(dim=-1).clamp_min(torch.finfo(items.dtype).tiny)
    count = min(k, len(items))
    indices = []
    for block in row_blocks(len(queries), len(items), max_scores):
        cosines = queries[block] @ items.T / length  # up to a factor for each query
        indices.append(cosines.topk(count, dim=1).indices.cpu().numpy())
    return np.concatenate(indices)


def _count(mask: Tensor, dim: int) -> Tensor:
    """Count the true values along `dim`. A plain sum of bools would first widen each to eight bytes."""
    return mask.view(torch.uint8).sum(dim, dtype=torch.int32)
