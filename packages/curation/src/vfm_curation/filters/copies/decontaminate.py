"""Filter of images that are, or look like, images of evaluation sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm_curation.filters.copies.point_index import have_few
from vfm_curation.filters.copies.same_content import panel_of_pairs, same_content
from vfm_curation.filters.hashes import NUM_VARIANTS, HashIndex
from vfm_curation.filters.model_filters import Decontaminate
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.survivors import shard_file

Bools = NDArray[np.bool_]
Measured = tuple[Path, int]  # folder of a set's measurements, and the number of its shards


def clean_images(config: Decontaminate, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask of images that are far from all images of the sets, by hash, points and, with a model, embedding."""
    sets = [run.measured_of(dataset, config.columns) for dataset in config.against]
    is_near = _by_hash(config, sets)
    copies = _by_points(config, run, sets) if config.thorough else np.zeros(run.num_units("image"), np.bool_)
    near_masks = _joined(map(is_near, run.images()), copies)
    if not config.clip:
        yield from (~mask for mask in near_masks)
        return
    # Only a model needs torch, which is the extra `clip`.
    from vfm_curation.filters.copies.clusters import near_references

    assert config.min_cosine
    vectors = np.concatenate([run.embeddings_of(dataset, config.clip) for dataset in config.against])
    images = (image_vectors for _, image_vectors in run.embeddings(config.clip))
    cosine_masks = near_references(images, vectors, config.min_cosine, run.runtime)
    yield from (~(near | by_cosine) for near, by_cosine in zip(near_masks, cosine_masks, strict=True))


def _joined(masks: Iterable[Bools], copies: Bools) -> Iterator[Bools]:
    """Yield each shard's mask together with the part of `copies` that is of its images."""
    start = 0
    for mask in masks:
        yield mask | copies[start : start + len(mask)]
        start += len(mask)


def _by_points(config: Decontaminate, run: FilterRun, sets: Sequence[Measured]) -> Bools:
    """Mark the images with the same content as an image of the sets, (num_images,), and list them in the report."""
    places = []
    names = []
    for number, (dataset, measured) in enumerate(zip(config.against, sets, strict=True), 1):
        for shard, table in enumerate(_tables(measured, ["row", "bad"])):
            rows = table["row"].filter(table["bad"].is_null()).to_numpy()
            places.append(np.stack(np.broadcast_arrays(number, shard, rows), axis=1))
            for row in rows.tolist():
                names.append(f"{dataset}, shard {shard}, row {row}")
    uids = []
    for table in run.identities():
        units = table["unit"].to_numpy()
        places.append(np.stack(np.broadcast_arrays(0, table["shard"].to_numpy(), units), axis=1))
        uids.append(table["uid"].cast(pa.string()).combine_chunks())
    folders = (run.remaining.measured, *map(itemgetter(0), sets))
    pairs = same_content(run, folders, np.concatenate(places).astype(np.int32), len(names))
    position = pairs["second"].to_numpy() - len(names)
    of_pool = pa.concat_arrays([pa.array([], pa.string()), *uids]).take(pa.array(position))
    of_sets = map(names.__getitem__, pairs["first"].to_pylist())
    panel = panel_of_pairs("Images of evaluation sets in the pool", pairs, of_sets, of_pool.to_pylist())
    run.details = panel.model_dump(mode="json")
    copies = np.zeros(run.num_units("image"), np.bool_)
    copies[position] = True
    return copies


def _tables(measured: Measured, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the measurements of each shard of a set."""
    folder, num_shards = measured
    for shard in range(num_shards):
        yield pq.read_table(shard_file(folder, shard), columns=columns, page_checksum_verification=True)


def _by_hash(config: Decontaminate, measured: Sequence[Measured]) -> Callable[[pa.Table], Bools]:
    """Create the function from a table of images to a mask of images that are near to an image of the sets.

    Near has the same meaning as for near duplicates: the hash of an image or its variants, and the other's hash.
    """
    columns = sorted(config.columns - {"thumbnail"})
    hashes, variants = [], []
    for table in chain.from_iterable(_tables(one_set, columns) for one_set in measured):
        images = table.drop_null()
        hashes.append(images["phash"].to_numpy())
        if config.variants:
            variants.append(_variants(images, _with_variants(config, images)))
    plain = HashIndex(np.concatenate(hashes), config.max_distance)
    if not config.variants:
        return lambda table: plain.near(table["phash"].to_numpy())
    # A variant is compared with the plain form of the other side only. Two variants of two images agree too easily.
    every = HashIndex(np.concatenate([*hashes, *variants]), config.max_distance)

    def near(table: pa.Table) -> Bools:
        near_mask: Bools = every.near(table["phash"].to_numpy())
        chosen = _with_variants(config, table)
        near_mask[chosen] |= plain.near(_variants(table, chosen)).reshape(-1, NUM_VARIANTS).any(axis=1)
        return near_mask

    return near


def _with_variants(config: Decontaminate, table: pa.Table) -> Bools:
    """Mark the images that are compared by their variants, as `near_duplicates` does."""
    return have_few(table["points"]) if config.thorough else np.ones(len(table), np.bool_)


def _variants(table: pa.Table, chosen: Bools) -> NDArray[np.uint64]:
    hashes: NDArray[np.uint64] = table["variants"].combine_chunks().flatten().to_numpy()
    return hashes.reshape(-1, NUM_VARIANTS)[chosen].ravel()
