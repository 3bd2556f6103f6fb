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
    """Yield which images are not near to any image of the sets, by hash, and by embedding if a model is given."""
    is_near = _by_hash(config, run)
    near = (is_near(table) for table in run.images())
    if not config.clip:
        yield from (~one for one in near)
        return
    # Only a model needs torch, which is the extra `clip`.
    from vfm_curation.filters.copies.clusters import near_references

    assert config.min_cosine
    vectors = np.concatenate([run.embeddings_of(dataset, config.clip) for dataset in config.against])
    images = (found for _, found in run.embeddings(config.clip))
    by_cosine = near_references(images, vectors, config.min_cosine, run.runtime)
    yield from (~(one | other) for one, other in zip(near, by_cosine, strict=True))


def _by_hash(config: Decontaminate, run: FilterRun) -> Callable[[pa.Table], Bools]:
    """Return the function from a table of images to a mask of those near to an image of the sets.

    Near is as for near duplicates: the hash of one image, or of a variant of it, and the other's own hash.
    """
    sets = pa.concat_tables([run.hashes_of(dataset, config.columns) for dataset in config.against])
    hashes = sets["phash"].to_numpy()
    if not config.variants:
        index = HashIndex(hashes, config.max_distance)
        return lambda table: index.near(table["phash"].to_numpy())
    plain = HashIndex(hashes, config.max_distance)
    every = HashIndex(np.concatenate([hashes, _flat(sets)]), config.max_distance)

    def near(table: pa.Table) -> Bools:
        of_variants = plain.near(_flat(table)).reshape(-1, NUM_VARIANTS).any(axis=1)
        found: Bools = of_variants | every.near(table["phash"].to_numpy())
        return found

    return near


def _flat(table: pa.Table) -> NDArray[np.uint64]:
    hashes: NDArray[np.uint64] = table["variants"].combine_chunks().flatten().to_numpy()
    return hashes
