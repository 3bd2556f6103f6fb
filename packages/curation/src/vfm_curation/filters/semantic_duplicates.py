"""Filter of pictures that show the same, as a CLIP model sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint
from vfm.stage import Ref, Seed
from vfm_curation.filters.base import Filter

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from vfm_curation.filters.base import Bools
    from vfm_curation.filters.sieve import Sieve

IMAGES_PER_CLUSTER = 4096
MOST_CLUSTERS = 4096  # with SAMPLES of each, what k-means holds in memory
SAMPLES = 32


class SemanticDuplicates(Filter):
    """Drops an image whose cosine with an image of a smaller uid in its cluster is at least `min_cosine`.

    That one need not be kept itself. Pairs across the border of two clusters are not found, so with several clusters
    a few duplicates stay; nothing falls that has no near earlier one. One cluster finds all pairs. Clusters come of
    k-means on a sample drawn by uid and seed, so the order of shards and samples does not matter.

    Source: Abbas et al. 2023, SemDeDup (arXiv:2303.09540), whose epsilon is 1 - min_cosine; it keeps by distance to the
    centre where we keep by uid.
    """

    type: Literal["semantic_duplicates"] = Field("semantic_duplicates", description="shows what has been seen")
    clip: Ref[ClipCheckpoint] = Field(description="the model whose image embeddings are compared")
    min_cosine: float = Field(
        gt=0, le=1, description="cosine of what shows the same; it depends on the model: try 0.95"
    )
    clusters: int | None = Field(
        None,
        ge=1,
        le=1 << 16,
        description=f"default: one for each {IMAGES_PER_CLUSTER} images, at most {MOST_CLUSTERS}",
    )
    seed: Seed = Field(0, description="of the sample that k-means learns from, and of its first centres")

    unit = "image"
    measures = ("embeddings",)

    @property
    def model(self) -> Ref[ClipCheckpoint]:
        """The model whose embeddings are compared."""
        return self.clip

    def judge(self, sieve: Sieve) -> Iterator[Bools]:
        """Images into the buckets of their clusters, what falls there back into the order of shards."""
        import pyarrow as pa
        import torch

        from vfm_curation.filters.buckets import Buckets, Fallen, num_buckets
        from vfm_curation.filters.clusters import near_earlier, nearest_centre

        num_images = sieve.num_units("image")
        fallen = Fallen(sieve.scratch / "fallen", num_buckets(num_images), sieve.num_shards)
        centres = self._centres(sieve, num_images)
        clusters = Buckets(sieve.scratch / "clusters", len(centres))
        for table, vectors in sieve.embeddings(self.clip):
            width = vectors.shape[1]
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), width)
            nearest = nearest_centre(torch.from_numpy(vectors).to(centres.device), centres)
            clusters.add(table.select(["shard", "unit", "uid"]).append_column("vector", column), nearest.cpu().numpy())
        for table in clusters:
            ordered = table.sort_by([(name, "ascending") for name in ("uid", "shard", "unit")])
            near = near_earlier(_vectors(ordered).to(centres.device), self.min_cosine)
            fallen.add(ordered.filter(pa.array(near)))
        yield from fallen.passing(sieve.identities())

    def _centres(self, sieve: Sieve, num_images: int) -> torch.Tensor:
        """Centres of k-means on a sample of about SAMPLES images a cluster, in the order of uids."""
        import numpy as np
        import pyarrow as pa
        import torch

        from vfm.data.draws import hash_strings, uniform
        from vfm.train.dist import resolve_device
        from vfm_curation.filters.clusters import spherical_kmeans

        wanted = self.clusters or min(MOST_CLUSTERS, math.ceil(num_images / IMAGES_PER_CLUSTER))
        share = SAMPLES * wanted / max(1, num_images)
        parts = []
        for table, vectors in sieve.embeddings(self.clip):
            drawn = np.flatnonzero(uniform(hash_strings(table["uid"]), self.seed) < share)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[drawn].ravel()), vectors.shape[1])
            parts.append(table.select(["uid"]).take(drawn).append_column("vector", column))
        sample = _vectors(pa.concat_tables(parts).sort_by("uid")).to(resolve_device(sieve.runtime))
        if not len(sample):
            return torch.zeros(1, sample.shape[1], device=sample.device)
        return spherical_kmeans(sample, min(wanted, len(sample)), self.seed)


def _vectors(table: pa.Table) -> torch.Tensor:
    """The column `vector` as float32, (N, D)."""
    import torch

    width = table.schema.field("vector").type.list_size
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.copy()).view(-1, width)
