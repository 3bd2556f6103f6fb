"""Drop images with the same content by a CLIP model, in pairs within each k-means cluster."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.data import hash_strings, uniform
from vfm.train import prepare_device
from vfm_curation.filters.copies.buckets import Buckets, Dropped, num_buckets
from vfm_curation.filters.copies.clusters import near_earlier, nearest_centre, spherical_kmeans
from vfm_curation.filters.model_filters import IMAGES_PER_CLUSTER, MAX_CLUSTERS, SemanticDuplicates
from vfm_curation.filters.run import FilterRun

SAMPLES = 32  # for each cluster, as training data of k-means


def distinct_images(config: SemanticDuplicates, run: FilterRun) -> Iterator[NDArray[np.bool_]]:
    """Yield a mask for each shard: the images without a near image of smaller uid in their cluster.

    Images go into a bucket for each cluster, and the dropped ones go back into the order of shards.
    """
    num_images = run.num_units("image")
    dropped = Dropped(run.scratch / "dropped", num_buckets(num_images), run.num_shards)
    centres = _centres(config, run, num_images)
    clusters = Buckets(run.scratch / "clusters", len(centres))
    for table, vectors in run.embeddings(config.clip):
        width = vectors.shape[1]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), width)
        nearest = nearest_centre(torch.from_numpy(vectors).to(centres.device), centres)
        clusters.add(table.select(["shard", "unit", "uid"]).append_column("vector", column), nearest.cpu().numpy())
    for table in clusters:
        ordered = table.sort_by([(name, "ascending") for name in ("uid", "shard", "unit")])
        near = near_earlier(_vectors(ordered).to(centres.device), config.min_cosine)
        dropped.add(ordered.filter(pa.array(near)))
    yield from dropped.passing(run.identities())


def _centres(config: SemanticDuplicates, run: FilterRun, num_images: int) -> Tensor:
    """Compute centroids by k-means, (K, D), on a sample of about SAMPLES images for each cluster, in order of uids."""
    num_clusters = config.clusters or min(MAX_CLUSTERS, math.ceil(num_images / IMAGES_PER_CLUSTER))
    share = SAMPLES * num_clusters / max(1, num_images)
    parts = []
    for table, vectors in run.embeddings(config.clip):
        # By a hash of the uid, so that the sample does not depend on shards.
        drawn = np.flatnonzero(uniform(hash_strings(table["uid"]), config.seed) < share)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[drawn].ravel()), vectors.shape[1])
        parts.append(table.select(["uid"]).take(drawn).append_column("vector", column))
    # Sorted, so that the order of shards and samples does not change the first centroids.
    sample = _vectors(pa.concat_tables(parts).sort_by("uid")).to(prepare_device(run.runtime))
    if not len(sample):
        return torch.zeros(1, sample.shape[1], device=sample.device)
    return spherical_kmeans(sample, min(num_clusters, len(sample)), config.seed)


def _vectors(table: pa.Table) -> Tensor:
    """Convert the column `vector` to float32, (N, D)."""
    width = table.schema.field("vector").type.list_size
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.copy()).view(-1, width)
