"""Find near pairs of unit vectors. Each is compared with earlier ones of its k-means cluster."""

# N vectors, K clusters, D width

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.plugin import Runtime
from vfm.train import prepare_device

BLOCK = 4096  # vectors; a block of cosines takes 64 MB
ROUNDS = 10  # of k-means; clusters only divide the work and need not be settled
EQUAL = 1 - 1e-6  # fp32 rounds the cosine of a vector with itself to a little less than 1


def spherical_kmeans(vectors: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Compute centroids of unit length by cosine, (K, D), after ten rounds from vectors drawn by the seed.

    Args:
        vectors: Vectors of unit length, (N, D). The draw depends on their order.
        num_clusters: Number of clusters K, at most N.
        seed: Seed of the first centroids.
    """
    chosen = np.random.default_rng(seed).choice(len(vectors), num_clusters, replace=False)
    centres = vectors[torch.from_numpy(chosen).to(vectors.device)].clone()
    for _ in range(ROUNDS):
        nearest = nearest_centre(vectors, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        norms = sums.norm(dim=1, keepdim=True)
        centres = torch.where(norms > 0, sums / norms.clamp_min(1e-12), centres)  # an empty cluster keeps its centroid
    return centres


def nearest_centre(vectors: Tensor, centres: Tensor) -> Tensor:
    """Find the index of the centroid with the largest cosine, (N,)."""
    parts = [(block @ centres.T).argmax(dim=1) for block in torch.split(vectors, BLOCK)]
    if parts:
        return torch.cat(parts)
    return torch.zeros(0, dtype=torch.long)


def near_earlier(vectors: Tensor, min_cosine: float) -> NDArray[np.bool_]:
    """Check whether each vector's cosine with any earlier vector is at least `min_cosine`, (N,).

    Cosines are computed in blocks, so memory grows with N, not with its square.

    Args:
        vectors: Vectors of unit length, (N, D).
        min_cosine: Smallest cosine of near vectors.
    """
    is_near = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    for start in range(0, len(vectors), BLOCK):
        # In blocks, as all cosines of a large cluster would not fit into memory.
        block = vectors[start : start + BLOCK]
        for before in range(0, start + 1, BLOCK):
            near = block @ vectors[before : before + BLOCK].T >= min(min_cosine, EQUAL)  # (BLOCK, BLOCK)
            # Within a block only earlier vectors count, and not the vector itself.
            if before == start:
                near = near.tril(diagonal=-1)
            is_near[start : start + BLOCK] |= near.any(dim=1)
    return is_near.cpu().numpy()


def near_any(vectors: Tensor, references: Tensor, min_cosine: float) -> NDArray[np.bool_]:
    """Check whether each vector is near to any reference.

    Args:
        vectors: Unit vectors, (N, D).
        references: Unit vectors, (M, D).
        min_cosine: Smallest cosine of near vectors.

    Returns:
        (N,).
    """
    is_near = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    for block in torch.split(references, BLOCK):
        is_near |= (vectors @ block.T >= min(min_cosine, EQUAL)).any(dim=1)
    return is_near.cpu().numpy()


def near_references(
    shards: Iterable[NDArray[np.float32]], references: NDArray[np.float32], min_cosine: float, runtime: Runtime
) -> Iterator[NDArray[np.bool_]]:
    """Yield a mask of the vectors in each shard that are near to any reference.

    Args:
        shards: Unit vectors of each shard.
        references: Unit vectors, (M, D).
        min_cosine: Smallest cosine of near vectors.
        runtime: Device of the computation.
    """
    device = prepare_device(runtime)
    on_device = torch.from_numpy(references).to(device)
    for vectors in shards:
        yield near_any(torch.from_numpy(vectors).to(device), on_device, min_cosine)
