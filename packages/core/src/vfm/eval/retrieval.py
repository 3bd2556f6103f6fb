"""Image-text retrieval both ways, several captions an image, in bounded memory.

A query is a hit at k if *any* of its right items is among the first k (the rule of CLIP, open_clip and CLIP_benchmark).
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

from vfm.eval.ranking import MAX_SCORES, row_blocks, tie_width

TILE_SCORES = 1 << 19  # 256 x 2,048: what is done with a tile finds it in the processor's cache
TILE_ASPECT = 8  # texts of a tile for each of its images


@dataclass(frozen=True)
class RetrievalRanks:
    """Rank of the best right item for each query, 0 is first.

    Names are CLIP_benchmark's: `text_retrieval` looks for a text given an image, (N,); `image_retrieval` for the image
    given a text, (M,).
    """

    text_retrieval: NDArray[np.int64]
    image_retrieval: NDArray[np.int64]


def retrieval_ranks(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, *, max_scores: int = TILE_SCORES
) -> RetrievalRanks:
    """Where each image finds its best own caption and each caption its image.

    Ties count against the query and a NaN is ranked last, as in `ranking.best_ranks`, which is this function's plain
    twin, one way at a time. Here each score is computed once, in tiles, and counted both ways: what lies below the
    query's own best is found at once, since that is known beforehand from the M pairs alone. Beside the features this
    takes a few numbers a query and a few times `max_scores`.

    Args:
        image_features: (N, D), normalised or not.
        text_features: (M, D), on the same device.
        image_of_text: which image each text describes, (M,) integers in 0..N-1; every image has a text.
        max_scores: scores held at once.

    Raises:
        ValueError: an image has no text.
    """
    missing = torch.bincount(image_of_text, minlength=len(image_features)) == 0
    if bool(missing.any()):
        raise ValueError(f"{int(missing.sum())} images have no text, the first is {int(missing.nonzero()[0])}")
    num_images, tie = len(image_features), tie_width(image_features.shape[1])
    own = own_cosines(image_features, text_features, image_of_text)  # (M,)
    best = own.new_full((num_images,), -torch.inf).scatter_reduce(0, image_of_text, own, "amax")
    lower_texts, lower_images = torch.zeros_like(best, dtype=torch.int64), torch.zeros_like(own, dtype=torch.int64)
    rows = max(1, isqrt(max_scores // TILE_ASPECT))
    for some_texts in _slices(len(own), max(1, max_scores // rows)):
        texts, image = F.normalize(text_features[some_texts], dim=-1), image_of_text[some_texts]
        for some_images in _slices(num_images, rows):
            scores = F.normalize(image_features[some_images], dim=-1) @ texts.T
            right = ((image >= some_images.start) & (image < some_images.stop)).nonzero()[:, 0]
            scores[image[right] - some_images.start, right] = -torch.inf  # a right item is not in the query's way
            lower_texts[some_images] += _count(scores < best[some_images, None] - tie, 1)
            lower_images[some_texts] += _count(scores < own[some_texts] - tie, 0)
    # "All but the lower" and not "those as high": a NaN on either side counts against the query.
    return RetrievalRanks(
        text_retrieval=torch.where(best.isnan(), len(own), len(own) - lower_texts).cpu().numpy(),
        image_retrieval=torch.where(own.isnan(), num_images, num_images - lower_images).cpu().numpy(),
    )


def own_cosines(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, *, max_numbers: int = TILE_SCORES
) -> Tensor:
    """The cosine of each text to its image, (M,), with at most a few times `max_numbers` numbers in memory."""
    return torch.cat(
        [
            F.cosine_similarity(image_features[image_of_text[some]], text_features[some], dim=-1)
            for some in row_blocks(len(text_features), text_features.shape[1], max_numbers)
        ]
    )


def nearest(queries: Tensor, items: Tensor, k: int, *, max_scores: int = MAX_SCORES) -> NDArray[np.int64]:
    """The `k` items of highest cosine for each query, (N, k), best first: what a report shows of a retrieval."""
    length = items.norm(dim=-1).clamp_min(torch.finfo(items.dtype).tiny)  # a normalised copy could be a large one
    blocks = row_blocks(len(queries), len(items), max_scores)
    cosines = (queries[b] @ items.T / length for b in blocks)  # up to a factor for each query
    return np.concatenate([c.topk(min(k, len(items)), dim=1).indices.cpu().numpy() for c in cosines])


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _count(found: Tensor, dim: int) -> Tensor:
    """How many are true; the same as a sum of bools, which torch would widen to eight bytes each first."""
    return found.view(torch.uint8).sum(dim, dtype=torch.int32)
