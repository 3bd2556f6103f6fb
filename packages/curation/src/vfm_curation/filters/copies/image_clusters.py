"""Filter of images by clusters: it keeps clusters that contain an image of a reference set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.plugin import UserError
from vfm.train import prepare_device
from vfm_curation.filters.copies.clusters import nearest_centre
from vfm_curation.filters.head_filters import ImageClusters
from vfm_curation.filters.run import FilterRun


def cluster_passes(config: ImageClusters, run: FilterRun) -> Iterator[NDArray[np.bool_]]:
    """Yield a mask for each shard: the images in a cluster to keep.

    Raises:
        UserError: If a file cannot be read or has a wrong shape.
    """
    centres = _centroids(config.centroids).to(prepare_device(run.runtime))

    def clusters_of(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        if vectors.shape[1] != centres.shape[1]:
            raise UserError(
                f"{config.centroids}: centroids of width {centres.shape[1]}; '{config.clip}' has {vectors.shape[1]}"
            )
        return nearest_centre(torch.from_numpy(vectors).to(centres.device), centres).cpu().numpy()

    keep = np.zeros(len(centres), dtype=np.bool_)
    if config.clusters:
        keep[_numbers(config.clusters, len(centres))] = True
    for dataset in config.near or ():
        keep[clusters_of(run.embeddings_of(dataset, config.clip))] = True
    for _, vectors in run.embeddings(config.clip):
        yield keep[clusters_of(vectors)]


def _array(file: str) -> NDArray[np.generic]:
    try:
        # A pickle in the file could run code.
        array: NDArray[np.generic] = np.load(Path(file), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: not readable as npy: {error}") from None
    return array


def _centroids(file: str) -> Tensor:
    """Read centroids and scale them to unit length, (K, D)."""
    centres = _array(file)
    if centres.ndim != 2 or not len(centres) or centres.dtype.kind != "f":
        raise UserError(f"{file}: expected floats of shape (clusters, width), got {centres.dtype} {centres.shape}")
    return torch.nn.functional.normalize(torch.from_numpy(centres.astype(np.float32)), dim=1)


def _numbers(file: str, num_clusters: int) -> NDArray[np.integer]:
    stored = _array(file)
    good = stored.dtype.kind in "iu" and stored.ndim == 1 and len(stored) > 0
    if not good or not 0 <= stored.min() <= stored.max() < num_clusters:
        raise UserError(f"{file}: expected numbers of clusters from 0 to {num_clusters - 1}, got {stored}")
    numbers: NDArray[np.integer] = stored.astype(np.int64)
    return numbers
