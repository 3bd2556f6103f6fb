"""Filter of images that are, or look like, images of evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vfm_curation.filters.hashes import near_any
from vfm_curation.filters.run import FilterRun
from vfm_curation.stages import Decontaminate

Bools = NDArray[np.bool_]


def clean_images(config: Decontaminate, run: FilterRun) -> Iterator[Bools]:
    """Yield which images are not near to any image of the sets, by hash, and by embedding if a model is given."""
    hashes = np.concatenate([run.hashes_of(dataset) for dataset in config.against])
    near = (near_any(table["phash"].to_numpy(), hashes, config.max_distance) for table in run.images())
    if not config.clip:
        yield from (~one for one in near)
        return
    # Only a model needs torch, which is the extra `clip`.
    from vfm_curation.filters.clusters import near_references

    assert config.min_cosine
    vectors = np.concatenate([run.embeddings_of(dataset, config.clip) for dataset in config.against])
    images = (found for _, found in run.embeddings(config.clip))
    by_cosine = near_references(images, vectors, config.min_cosine, run.runtime)
    yield from (~(one | other) for one, other in zip(near, by_cosine, strict=True))
