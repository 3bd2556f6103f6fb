"""Pools of any size by recombining real captions, entries, and stages run as the flow runs them, for benchmarks.

A caption is the first half of the words of one and the second half of another: 212,342 captions make 45 billion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vfm.data import DatasetSpec, Shard, unpacked_uids, write_index
from vfm.plugin import Context, Event, Pool, Stage
from vfm_curation.engine import run_shards
from vfm_curation.runtime import CurationRuntime

NUM_COMMON = 200  # most frequent words, which are not entries: a text then has about 3.5 entries, as in the paper


def write_entries(path: Path, captions: Sequence[str], number: int) -> None:
    """Write the captions' words except the most frequent, and generated ones: a matcher of realistic size."""
    counts = Counter(word for caption in captions for word in caption.split())
    words = [word for word, _ in counts.most_common()][NUM_COMMON:number]
    path.write_text("\n".join([*words, *(f"filler{i} word" for i in range(number - len(words)))]), encoding="utf-8")


@dataclass(frozen=True)
class Recombination:
    """A pool to write: `halves` is a file of the first and second halves of captions."""

    folder: Path
    halves: Path
    size: int
    shard_size: int


def write_pool(
    folder: Path,
    captions: Sequence[str],
    size: int,
    shard_size: int,
    runtime: CurationRuntime | None = None,
    distinct: int | None = None,
) -> None:
    """Write a pool of captions without images, in parquet shards with a column `uid`.

    Args:
        folder: Folder of the pool.
        captions: Captions to recombine.
        size: Number of captions.
        shard_size: Captions of a shard.
        runtime: Where the shards are written.
        distinct: Number of captions that are written. Further shards are hard links to the first ones.
    """
    folder.mkdir(parents=True)
    words = [caption.split() for caption in captions]
    halves = {
        "first": [" ".join(found[: (len(found) + 1) // 2]) for found in words],
        "second": [" ".join(found[(len(found) + 1) // 2 :]) for found in words],
    }
    job = Recombination(folder, folder.with_name(f"{folder.name}-halves.parquet"), size, shard_size)
    pq.write_table(pa.table(halves), job.halves)
    number = -(-size // shard_size)
    assert not distinct or size % shard_size == 0 == distinct % shard_size, "links need whole shards"
    written = min(number, distinct // shard_size) if distinct else number
    for _ in run_shards(write_pool_shard, job, range(written), runtime or CurationRuntime(workers=1)):
        pass
    for shard in range(written, number):
        shard_file(job, shard).hardlink_to(shard_file(job, shard % written))
    shards = [
        Shard.of(shard_file(job, shard), min(shard_size, size - shard * shard_size), format="parquet")
        for shard in range(number)
    ]
    spec = DatasetSpec(images=False, texts={"en": "caption"})
    Pool.create(folder, num_samples=write_index(folder, shards, spec))


def shard_file(job: Recombination, shard: int) -> Path:
    """Return the path of a shard."""
    return job.folder / f"{shard:08d}.parquet"


@lru_cache(maxsize=1)
def _halves(file: Path) -> pa.Table:
    return pq.read_table(file).combine_chunks()


def write_pool_shard(job: Recombination, shard: int) -> int:
    """Write the captions of one shard, drawn by its number."""
    halves, rng = _halves(job.halves), np.random.default_rng(shard)
    number = min(job.shard_size, job.size - shard * job.shard_size)
    chosen = [pa.array(rng.integers(0, len(halves), number)) for _ in range(2)]
    texts = pc.binary_join_element_wise(halves["first"].take(chosen[0]), halves["second"].take(chosen[1]), " ")
    uids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), number, [None, pa.py_buffer(rng.bytes(16 * number))])
    table = pa.table({"uid": unpacked_uids(uids), "caption": texts})
    pq.write_table(table, shard_file(job, shard), compression="zstd", use_dictionary=False)
    return number


def run_stage(stage: Stage, store: Path, send: Callable[[Event], None] = lambda event: None, **inputs: Path) -> Any:
    """Run a stage as the flow does."""
    directory, work = store / stage.name, store / f".{stage.name}.work"
    for folder in (directory, work):
        folder.mkdir(parents=True)
    return stage.run(Context(stage.name, directory, work, inputs, send))
