"""Filter of images by clusters: those that contain an image of a given set."""

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
    """Yield which images are in a cluster to keep.

    Raises:
        UserError: a file cannot be read or has another shape.
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
        found: NDArray[np.generic] = np.load(Path(file), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: not readable as npy: {error}") from None
    return found


def _centroids(file: str) -> Tensor:
    """Return centroids of unit length, (K, D)."""
    found = _array(file)
    if found.ndim != 2 or not len(found) or found.dtype.kind != "f":
        raise UserError(f"{file}: expected floats of shape (clusters, width), got {found.dtype} {found.shape}")
    return torch.nn.functional.normalize(torch.from_numpy(found.astype(np.float32)), dim=1)


def _numbers(file: str, num_clusters: int) -> NDArray[np.integer]:
    found = _array(file)
    good = found.dtype.kind in "iu" and found.ndim == 1 and len(found) > 0
    if not good or not 0 <= found.min() <= found.max() < num_clusters:
        raise UserError(f"{file}: expected numbers of clusters from 0 to {num_clusters - 1}, got {found}")
    numbers: NDArray[np.integer] = found.astype(np.int64)
    return numbers
