"""Filter of images that are, or look like, images of evaluation sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm_curation.filters.hashes import NUM_VARIANTS, HashIndex
from vfm_curation.filters.model_filters import Decontaminate
from vfm_curation.filters.run import FilterRun

Bools = NDArray[np.bool_]


def clean_images(config: Decontaminate, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask of images that are far from all images of the sets, by hash and, with a model, by embedding."""
    is_near = _by_hash(config, run)
    near_masks = (is_near(table) for table in run.images())
    if not config.clip:
        yield from (~mask for mask in near_masks)
        return
    # Only a model needs torch, which is the extra `clip`.
    from vfm_curation.filters.copies.clusters import near_references

    assert config.min_cosine
    vectors = np.concatenate([run.embeddings_of(dataset, config.clip) for dataset in config.against])
    images = (image_vectors for _, image_vectors in run.embeddings(config.clip))
    cosine_masks = near_references(images, vectors, config.min_cosine, run.runtime)
    yield from (~(by_hash | by_cosine) for by_hash, by_cosine in zip(near_masks, cosine_masks, strict=True))


def _by_hash(config: Decontaminate, run: FilterRun) -> Callable[[pa.Table], Bools]:
    """Create the function from a table of images to a mask of images that are near to an image of the sets.

    Near has the same meaning as for near duplicates: the hash of an image or its variants, and the other's hash.
    """
    sets = pa.concat_tables([run.hashes_of(dataset, config.columns) for dataset in config.against])
    hashes = sets["phash"].to_numpy()
    if not config.variants:
        index = HashIndex(hashes, config.max_distance)
        return lambda table: index.near(table["phash"].to_numpy())
    # A variant is compared with the plain form of the other side only. Two variants of two images agree too easily.
    plain = HashIndex(hashes, config.max_distance)
    every = HashIndex(np.concatenate([hashes, _flat(sets)]), config.max_distance)

    def near(table: pa.Table) -> Bools:
        of_variants = plain.near(_flat(table)).reshape(-1, NUM_VARIANTS).any(axis=1)
        near_mask: Bools = of_variants | every.near(table["phash"].to_numpy())
        return near_mask

    return near


def _flat(table: pa.Table) -> NDArray[np.uint64]:
    hashes: NDArray[np.uint64] = table["variants"].combine_chunks().flatten().to_numpy()
    return hashes
