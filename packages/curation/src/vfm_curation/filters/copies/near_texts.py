"""Drop texts that are nearly the same. MinHash finds candidates, and these are compared exactly.

Signatures are computed by tasks, one for each shard. Texts that agree on a band meet in buckets on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasketch import MinHash
from numpy.typing import NDArray

from vfm.data import splitmix64
from vfm_curation.engine import run_shards
from vfm_curation.filters.copies.buckets import Buckets, Dropped, num_buckets
from vfm_curation.filters.copies.duplicates import BY_UID
from vfm_curation.filters.list_filters import MINHASH_SEED, NearDuplicateTexts
from vfm_curation.filters.remaining import Remaining
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.survivors import save_array, shard_file
from vfm_curation.summaries import TaskSummary

Bands = NDArray[np.uint64]


@dataclass(frozen=True)
class BandsJob:
    """Settings that the tasks share."""

    config: NearDuplicateTexts
    remaining: Remaining
    folder: Path


def distinct_texts(config: NearDuplicateTexts, run: FilterRun) -> Iterator[NDArray[np.bool_]]:
    """Yield a mask for each shard: the texts that are not near to a text with a smaller uid."""
    job = BandsJob(config, run.remaining, run.scratch / "bands")
    job.folder.mkdir(parents=True)
    for _ in run_shards(write_bands, job, range(run.num_shards), run.runtime):
        pass
    # Each text is written once for each band.
    number = num_buckets(run.num_units("text") * config.bands)
    agreeing = Buckets(run.scratch / "agreeing", number)
    dropped = Dropped(run.scratch / "dropped", number, run.num_shards)
    for shard, table in enumerate(run.texts()):
        bands: Bands = np.load(shard_file(job.folder, shard, "npy"))
        table = table.select(["shard", "unit", "uid", "caption"])
        for band in bands.T:
            agreeing.add(table.append_column("group", pa.array(band)), band % number)
    for table in agreeing:
        ordered = table.sort_by([("group", "ascending"), *BY_UID])
        dropped.add(ordered.filter(pa.array(near_first(ordered, config))))
    yield from dropped.passing(run.texts())


def write_bands(job: BandsJob, shard: int) -> TaskSummary:
    """Write a hash of each band of each remaining text of a shard, (num_texts, bands)."""
    captions = job.remaining.texts(shard)["caption"].to_pylist()
    save_array(shard_file(job.folder, shard, "npy"), bands_of(captions, job.config))
    return TaskSummary(num_texts=len(captions))


def bands_of(texts: list[str], config: NearDuplicateTexts) -> Bands:
    """Hash each band of the texts' MinHash, (num_texts, bands). Each band has its own hashes."""
    bands = np.empty((len(texts), config.bands), dtype=np.uint64)
    sets = ([run.encode("utf-8", "surrogatepass") for run in runs_of(text, config.ngram)] for text in texts)
    signatures = MinHash.generator(sets, num_perm=config.bands * config.rows, seed=MINHASH_SEED)
    for text, signature in enumerate(signatures):
        values = signature.hashvalues.reshape(config.bands, config.rows).astype(np.uint64)
        state = splitmix64(np.arange(config.bands, dtype=np.uint64))
        # A band is hashed to one word, so rows of a bucket are compared by a number.
        for column in values.T:
            state = splitmix64(state ^ column)
        bands[text] = state
    return bands


def runs_of(text: str, ngram: int) -> frozenset[str]:
    """Collect the character runs of a text in lower case with single spaces. A short text is its only run."""
    text = " ".join(text.casefold().split())
    return frozenset(text[start : start + ngram] for start in range(max(1, len(text) - ngram + 1)))


def near_first(table: pa.Table, config: NearDuplicateTexts) -> NDArray[np.bool_]:
    """Mark near-duplicates.

    A near-duplicate is similar to an earlier text of its group that was not marked.

    Args:
        table: Table with the columns `group`, ascending, and `caption`, (N,).
        config: Smallest similarity, and length of runs.

    Returns:
        (N,).
    """
    runs = functools.lru_cache(1 << 14)(lambda text: runs_of(text, config.ngram))
    is_near = np.zeros(len(table), dtype=np.bool_)
    leaders = list[str]()
    last = None
    for row, (group, text) in enumerate(zip(table["group"].to_pylist(), table["caption"].to_pylist(), strict=True)):
        if group != last:
            leaders = []
            last = group
        # Compared only with texts that stay, so that a chain of small changes does not drop its far end.
        is_near[row] = any(similarity(runs(text), runs(other)) >= config.min_similarity for other in leaders)
        if not is_near[row]:
            leaders.append(text)
    return is_near


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Compute the Jaccard similarity of two sets."""
    return len(first & second) / len(first | second)
