"""Matching a pool shard by shard. One shard is one task: a shard's number in, one parquet file out.

A file is written under a temporary name and renamed when it is whole, so that a file that is there is finished: after
a crash only the missing ones are made. What is true of a shard as a whole lies in its file's metadata.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.artifacts import PairDataset
from vfm.data import Source, open_dataset
from vfm.stage import Runtime
from vfm_curation.engine import Summary, run_shards
from vfm_curation.language import detected
from vfm_curation.matchers import Matchers
from vfm_curation.matching import Semantics
from vfm_curation.pool_texts import OnBad, texts_of
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file

FOLDER = "shards"
RULES_VERSION = 3  # raised where the same text and entries give other matches


@dataclass(frozen=True)
class MatchJob:
    """What all shards of a match share; small, so that it can be sent to any process."""

    pool: Path  # or a subset of one
    matchers: Path  # made by `Matchers.build`
    entries: str  # hash of the metadata
    languages: tuple[str, ...]
    folder: Path
    semantics: Semantics = "metaclip"
    verify: bool = False
    detect_language: bool = False

    @property
    def rules(self) -> tuple[Any, ...]:
        """What the matches depend on beside the texts."""
        return self.entries, self.languages, self.semantics, self.verify, self.detect_language, RULES_VERSION

    def file(self, shard: int) -> Path:
        """Where a shard's matches lie, once they are whole."""
        return self.folder / f"{shard:08d}.parquet"


@dataclass
class ShardSummary(Summary):
    """What a shard held: texts of the wanted languages, those matched, (text, entry) pairs; bad samples by reason."""

    num_matched: int = 0
    num_pairs: int = 0
    texts_of: dict[str, int] = field(default_factory=dict)  # by language, the detected one where it is

    def add(self, other: ShardSummary) -> None:
        """Adds another shard's texts."""
        self.num_texts += other.num_texts
        self.num_matched += other.num_matched
        self.num_pairs += other.num_pairs


@functools.lru_cache(maxsize=1)
def _tools(job: MatchJob) -> tuple[Source, Matchers]:
    """The texts and the matchers, opened once in each process."""
    return open_dataset(PairDataset.load(job.pool)), Matchers(job.matchers, verify=job.verify)


def match_shard(job: MatchJob, shard: int) -> ShardSummary:
    """Matches the texts of one shard and leaves its file; a finished file is not made again.

    The file has one row for each matched text: shard, row, uid, language, text_index, `detected` where languages are,
    and ids, the entries in it.
    """
    source, matchers = _tools(job)
    made = made_from(asdict(source.index.shards[shard]), *job.rules)
    file = job.file(shard)
    if record := finished_summary(file, made):
        return ShardSummary.of(record)
    summary = ShardSummary()
    texts = texts_in(source, shard, job.languages, on_bad=summary.skip)
    if job.detect_language:
        texts = texts.append_column("detected", detected(texts["text"], matchers.languages))
    languages = texts["detected" if job.detect_language else "language"]
    ids = matchers.match(texts["text"], languages)
    matched = pc.greater(pc.list_value_length(ids), 0)
    summary.num_texts, summary.num_matched = len(texts), pc.sum(matched).as_py() or 0
    summary.num_pairs, summary.texts_of = len(ids.values), count_of_each(languages)
    table = texts.drop_columns("text").add_column(0, "shard", pa.array(np.full(len(texts), shard, np.int32)))
    table = table.append_column("ids", ids).filter(matched)
    write_shard_file(file, table, made, vars(summary))
    return summary


def texts_in(source: Source, shard: int, languages: Sequence[str], *, on_bad: OnBad | None = None) -> pa.Table:
    """The texts of a shard that are in one of the languages; columns as in `texts_of`."""
    texts = texts_of(source, shard, on_bad=on_bad)
    return texts.filter(pc.is_in(texts["language"], pa.array(languages, pa.string())))


def count_of_each(languages: pa.ChunkedArray) -> dict[str, int]:
    """How often each value stands in a column."""
    return {one["values"]: one["counts"] for one in languages.value_counts().to_pylist()}


def match_shards(job: MatchJob, shards: Sequence[int], runtime: Runtime) -> Iterator[ShardSummary]:
    """Matches shards where `runtime` says, and yields each one's summary as it is finished."""
    return run_shards(match_shard, job, shards, runtime)


@dataclass(frozen=True)
class ShardMatches:
    """The matched texts of one shard: the columns of its file, and all entry ids with the offsets of each text's."""

    table: pa.Table  # shard, row, uid, language, text_index, perhaps detected
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]  # text i has ids[offsets[i]:offsets[i + 1]]

    def ids_of(self, text: int) -> list[int]:
        """The entries in one text."""
        ids: list[int] = self.ids[self.offsets[text] : self.offsets[text + 1]].tolist()
        return ids

    @property
    def languages(self) -> pa.ChunkedArray:
        """The language of each text: the detected one where it is."""
        return self.table["detected" if "detected" in self.table.column_names else "language"]


def num_shards(directory: Path) -> int:
    """Number of shards of a `Matches` artifact."""
    return sum(1 for _ in (directory / FOLDER).glob("*.parquet"))


def texts_by_language(directory: Path) -> Counter[str]:
    """Texts of each language that were looked at for a `Matches` artifact."""
    found = Counter[str]()
    for file in sorted((directory / FOLDER).glob("*.parquet")):
        found.update((finished_summary(file) or {}).get("texts_of", {}))
    return found


def read_shards(directory: Path, *, only_ids: bool = False) -> Iterator[ShardMatches]:
    """The files of a `Matches` artifact, in the order of the shards."""
    for file in sorted((directory / FOLDER).glob("*.parquet")):
        with pq.ParquetFile(file, read_dictionary=["language"]) as parquet:
            table = parquet.read(["ids"] if only_ids else None)
        lists = table["ids"].combine_chunks()
        offsets = lists.offsets.to_numpy().astype(np.int64)
        yield ShardMatches(table.drop_columns("ids"), lists.values.to_numpy(), offsets)
