"""Image-text retrieval both ways, several captions an image, in bounded memory.

A query is a hit at k if *any* of its right items is among the first k (the rule of CLIP, open_clip and CLIP_benchmark).
"""

# N images, M texts, D width

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vfm.eval.ranking import MAX_SCORES, best_ranks, row_blocks


@dataclass(frozen=True)
class RetrievalRanks:
    """Rank of the best right item for each query, 0 is first.

    Names are CLIP_benchmark's: `text_retrieval` looks for a text given an image, (N,); `image_retrieval` for the image
    given a text, (M,).
    """

    text_retrieval: NDArray[np.int64]
    image_retrieval: NDArray[np.int64]


def retrieval_ranks(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, *, max_scores: int = MAX_SCORES
) -> RetrievalRanks:
    """Where each image finds its best own caption and each caption its image.

    Ties count against the query (see `ranking.best_ranks`).

    Args:
        image_features: (N, D), normalised or not.
        text_features: (M, D).
        image_of_text: which image each text describes, (M,) integers in 0..N-1; every image has a text.
        max_scores: scores held at once.
    """
    images, texts = F.normalize(image_features, dim=-1), F.normalize(text_features, dim=-1)
    own = torch.arange(len(images), device=images.device)
    return RetrievalRanks(
        text_retrieval=best_ranks(images, texts, own, image_of_text, max_scores=max_scores),
        image_retrieval=best_ranks(texts, images, image_of_text, own, max_scores=max_scores),
    )


def nearest(queries: Tensor, items: Tensor, k: int, *, max_scores: int = MAX_SCORES) -> NDArray[np.int64]:
    """The `k` items of highest cosine for each query, (N, k), best first: what a report shows of a retrieval."""
    q, x = F.normalize(queries, dim=-1), F.normalize(items, dim=-1)
    blocks = row_blocks(len(q), len(x), max_scores)
    return np.concatenate([(q[b] @ x.T).topk(min(k, len(x)), dim=1).indices.cpu().numpy() for b in blocks])
