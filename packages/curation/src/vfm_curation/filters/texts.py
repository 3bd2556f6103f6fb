"""Measure the texts of a pool. One shard is a task and a parquet file with a row for each text."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vfm.data import Source, open_dataset
from vfm.plugin import ImageDataset
from vfm_curation.filters.survivors import shard_file
from vfm_curation.language import detect
from vfm_curation.pool_texts import encoded, texts_or_lost
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file
from vfm_curation.summaries import TaskSummary
from vfm_curation.text_counts import character_and_word_counts
from vfm_curation.uids import bytes_of_uids

OPTIONAL_COLUMNS = frozenset({"caption", "text", "detected"})  # measured only if a filter reads them
IDENTITY = ["shard", "row", "uid", "language", "text_index"]
VERSION = 6  # increase when the same shard gives other measurements


@dataclass(frozen=True)
class TextJob:
    """Settings that the tasks over a pool's texts share."""

    dataset: Path
    folder: Path
    columns: frozenset[str]
    values: frozenset[str] = frozenset()
    counts_words: bool = True


@functools.lru_cache(maxsize=4)
def opened(dataset: Path) -> Source:
    """Open the samples of an artifact, once in each process."""
    return open_dataset(ImageDataset.load(dataset))


def measure_texts(job: TextJob, shard: int) -> TaskSummary:
    """Measure the texts of a shard, and write a row for each.

    The columns are the identity, the columns of the job, and `characters` and `words` if they are counted. `caption` is
    the text itself. `text` stands for `text_high` and `text_low`, 128 bits of a hash. `detected` is the detected
    language, with `detected_score`. `stored.NAME` is the user's own column NAME of the job's `values`.
    """
    source = opened(job.dataset)
    file = shard_file(job.folder, shard, "arrow")
    stored = [sorted(job.values)] if job.values else []
    source_hash = made_from(asdict(source.index.shards[shard]), sorted(job.columns), *stored, job.counts_words, VERSION)
    finished = finished_summary(file, source_hash)
    if finished:
        return TaskSummary.of(finished)
    summary = TaskSummary()
    table = texts_or_lost(source, shard, summary, sorted(job.values))
    languages = encoded(table["language"])
    if len(languages.dictionary) > 1:  # the texts of one language are in order
        table = table.sort_by([(name, "ascending") for name in ("row", "language", "text_index")])
        languages = encoded(table["language"])
    columns = {
        "shard": pa.array(np.full(len(table), shard, dtype=np.int32)),
        **{name: table[name] for name in IDENTITY[1:]},
        "uid": bytes_of_uids(table["uid"]),
        "language": languages,
    }
    if job.counts_words:
        columns |= dict(
            zip(("characters", "words"), map(pa.array, character_and_word_counts(table["text"])), strict=True)
        )
    if "caption" in job.columns:
        columns["caption"] = table["text"]
    if "text" in job.columns:
        columns |= halves("text", [digest(text.encode()) for text in table["text"].to_pylist()])
    if "detected" in job.columns:
        codes, scores = detect(table["text"].to_pylist())
        columns |= {"detected": pa.array(codes, pa.string()), "detected_score": pa.array(scores, pa.float32())}
    for name in sorted(job.values):
        columns[f"stored.{name}"] = table[f"stored.{name}"]
    summary.num_texts = len(table)
    write_shard_file(file, pa.table(columns), source_hash, vars(summary))
    return summary


def digest(value: bytes) -> bytes:
    """Compute a hash of 128 bits that stands for a value in comparisons."""
    return hashlib.blake2b(value, digest_size=16).digest()


def halves(name: str, digests: Sequence[bytes | None]) -> dict[str, pa.Array]:
    """Split digests into two columns of 64 bits, `NAME_high` and `NAME_low`, null where there is no digest."""
    missing = np.array([value is None for value in digests], dtype=np.bool_)
    joined = b"".join(value or bytes(16) for value in digests)
    numbers = np.frombuffer(joined, dtype=">u8").reshape(-1, 2)
    columns = zip(("high", "low"), numbers.astype(np.uint64).T, strict=True)
    return {f"{name}_{half}": pa.array(column, mask=missing) for half, column in columns}
