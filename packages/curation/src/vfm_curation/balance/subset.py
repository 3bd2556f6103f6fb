"""Balance a pool shard by shard from its matches on disk: choose the kept texts, and compute how many to expect.

One shard is one task. It reads the shard's matches and writes the shard's file of the subset.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.data import (
    SUBSET_FOLDER,
    drawn,
    stored_subset,
    subset_index_rows,
    subset_schema,
    write_subset_index,
)
from vfm.plugin import Artifact, Context, CuratedSubset, Matches, PairDataset, Pool, store_files
from vfm_curation.counts.entry_counts import write_counts
from vfm_curation.counts.matches import ShardMatches, count_of_each, matches_file, num_shards, read_matches
from vfm_curation.counts.probabilities import Floats, Integers, in_units, text_probability
from vfm_curation.counts.sampled_texts import siblings_of
from vfm_curation.engine import run_shards
from vfm_curation.runtime import CurationRuntime, TextsOfImage
from vfm_curation.shard_files import (
    all_uids_packed,
    finished_summary,
    hash_of_source,
    link_files,
    made_from,
    write_shard_file,
)
from vfm_curation.summaries import TaskSummary, with_progress

UNIT = 2.0**32  # sums of probabilities are in units of 2^-32
VERSION = 1  # increase when the same matches and probabilities give another file


@dataclass(frozen=True)
class BalancedShard:
    """The matched texts of a shard with the probability of keeping each, (num_texts,), and whether it is kept."""

    matches: ShardMatches
    probability: Floats
    kept: NDArray[np.bool_]

    def table(self, shard: int) -> pa.Table:
        """Build the rows of the subset, sorted. Each has its probability and whether it is kept."""
        table = self.matches.table.select(["row", "uid", "language", "text_index"])
        table = table.append_column("shard", pa.array(np.full(len(self.kept), shard, np.int32)))
        table = table.append_column("probability", pa.array(self.probability.astype(np.float32)))
        table = table.append_column("kept", pa.array(self.kept))
        at = subset_schema().get_field_index("uid")
        schema = subset_schema().set(at, pa.field("uid", table["uid"].type))  # as in the file of matches
        table = table.select(schema.names).cast(schema)
        if len(self.matches.table["language"].unique()) < 2:
            return table  # matching wrote it in order of row and text
        return table.sort_by([(name, "ascending") for name in ("row", "language", "text_index")])


def balance_shard(
    matches: ShardMatches, entry_probability: Floats, seed: int, texts: TextsOfImage = "every"
) -> BalancedShard:
    """Draw for each text of a shard, from its identity and the seed.

    `entry_probability` is (num_entries,), or without a dimension the probability of every matched text.
    """
    probability = _of_texts(matches, entry_probability)
    images = matches.table["row"].to_numpy() if texts == "one_per_image" else None
    return BalancedShard(matches, probability, drawn(matches.keys, probability, seed, images=images))


def _of_texts(matches: ShardMatches, entry_probability: Floats) -> Floats:
    """Compute the probability of each text, (num_texts,)."""
    if not entry_probability.ndim:
        return np.full(len(matches.offsets) - 1, float(entry_probability))
    return text_probability(matches.ids, matches.offsets, entry_probability)


@dataclass(frozen=True)
class BalanceJob:
    """Settings that the tasks over the shards of a `Matches` artifact share. The results go to `folder`."""

    matches: Path
    folder: Path
    # A path and a hash instead of the array, so that a job stays small.
    probability: Path  # an npy file, (num_entries,) or without a dimension
    sha256: str
    seed: int = 0
    texts: TextsOfImage = "every"
    packed: bool = True  # uids of the subset take 16 bytes

    @classmethod
    def of(
        cls, matches: Path, folder: Path, probability: Floats, *, seed: int = 0, texts: TextsOfImage = "every"
    ) -> BalanceJob:
        """Create a job, and write the entries' probabilities to a file.

        They may be too many to send with each task.

        Args:
            matches: Folder of the matches.
            folder: Folder for the file.
            probability: Probability of each entry.
            seed: Seed of the draws.
            texts: Texts of an image that are kept.
        """
        sha256 = hashlib.sha256(probability.tobytes()).hexdigest()[:16]
        file = folder / f"probability-{sha256}.npy"
        np.save(file, probability)
        return cls(matches, folder, file, sha256, seed, texts)

    @property
    def files(self) -> Path:
        """Folder of the subset's files."""
        return self.folder / SUBSET_FOLDER

    @property
    def kept_counts(self) -> Path:
        """Folder of the counts of entries among the kept texts."""
        return self.folder / "kept_counts"


@lru_cache(maxsize=2)
def _probabilities(file: Path) -> Floats:
    """Map an array into memory, once in each process. Processes share its pages."""
    probabilities: Floats = store_files.read_npy(file, mapped=True)
    return probabilities


@dataclass
class SizeSummary(TaskSummary):
    """The expected number of kept texts of a shard."""

    units: int = 0


def expected_of_shard(job: BalanceJob, shard: int) -> SizeSummary:
    """Sum the shard's probabilities. Nothing is written."""
    matches = read_matches(matches_file(job.matches, shard), only_ids=job.texts == "every")
    probability = _of_texts(matches, _probabilities(job.probability))
    return SizeSummary(units=_units(matches, probability, job.texts))


def _units(matches: ShardMatches, probability: Floats, texts: TextsOfImage) -> int:
    """Compute the expected number of kept texts, including the chance to be chosen as the text of an image."""
    # A text of an image with n texts is chosen with probability 1 / n.
    if texts == "one_per_image":
        probability = probability / siblings_of(matches.table["row"].to_numpy())
    return int(in_units(probability[:, None])[0])


def expected_size(job: BalanceJob, runtime: CurationRuntime) -> float:
    """Compute the expected number of kept texts of all shards. It is exact and independent of the shards' order."""
    summaries = run_shards(expected_of_shard, job, range(num_shards(job.matches)), runtime)
    return sum(summary.units for summary in summaries) / UNIT


@dataclass
class BalanceSummary(TaskSummary):
    """Counts of a balanced shard.

    `texts` are the matched ones, `units` their expected number, `index` as in core. Matched and kept texts are also
    counted by language: the detected language if languages were detected, else the key.
    """

    num_kept: int = 0
    units: int = 0
    index: list[dict[str, Any]] = field(default_factory=list)
    matched: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


def write_balanced(job: BalanceJob, shard: int) -> BalanceSummary:
    """Write the shard's file of the subset, and the counts of entries among its kept texts."""
    source = matches_file(job.matches, shard)
    file = job.files / f"{shard:08d}.parquet"
    source_hash = made_from(hash_of_source(source), job.sha256, job.seed, job.texts, job.packed, VERSION)
    record = finished_summary(file, source_hash)
    if record:
        return BalanceSummary.of(record)
    balanced = balance_shard(read_matches(source), _probabilities(job.probability), job.seed, job.texts)
    matches = balanced.matches
    kept = balanced.kept
    table = balanced.table(shard)
    languages = matches.languages
    summary = BalanceSummary(
        num_texts=len(kept),
        num_kept=int(kept.sum()),
        units=_units(matches, balanced.probability, job.texts),
        index=subset_index_rows(shard, table),
        matched=count_of_each(languages),
        kept=count_of_each(languages.filter(pa.array(kept))),
    )
    write_counts(job.kept_counts, shard, matches.ids[np.repeat(kept, np.diff(matches.offsets))])
    stored = stored_subset(table, packed=job.packed)
    write_shard_file(file, stored, source_hash, vars(summary))  # last: it marks both as whole
    return summary


@dataclass
class SubsetTotals:
    """Totals of a subset, with kept texts with each entry, kept texts and images, and keys of the kept captions."""

    counts: Integers
    num_texts: int = 0
    num_samples: int = 0
    units: int = 0
    keys: set[str] = field(default_factory=set)
    matched: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    @property
    def expected(self) -> float:
        """Expected number of kept texts."""
        return self.units / UNIT

    def add(self, summary: BalanceSummary) -> None:
        """Add the counts of a shard, except its counts of entries."""
        self.num_texts += summary.num_kept
        self.units += summary.units
        self.num_samples += kept_samples(summary.index)
        self.keys |= kept_languages(summary.index)
        self.matched.update(summary.matched)
        self.kept.update(summary.kept)


def write_subset_files(ctx: Context, job: BalanceJob, runtime: CurationRuntime) -> SubsetTotals:
    """Write the files of a subset by tasks, and its index. The totals are without counts of entries."""
    for folder in (job.files, job.kept_counts):
        folder.mkdir(exist_ok=True)
    total = num_shards(job.matches)
    job = replace(job, packed=all_uids_packed(matches_file(job.matches, shard) for shard in range(total)))
    totals = SubsetTotals(np.zeros(0, np.int64))
    index = []
    summaries = run_shards(write_balanced, job, range(total), runtime)
    for summary in with_progress(ctx, summaries, total, kept=lambda: totals.num_texts):
        totals.add(summary)
        index += summary.index
    write_subset_index(ctx.directory, index)
    link_files(job.files, ctx.directory / SUBSET_FOLDER)
    return totals


def create_subset(
    ctx: Context,
    totals: SubsetTotals,
    matches: Matches,
    pairs: PairDataset,
    texts: TextsOfImage = "every",
    numbers: Mapping[str, float] | None = None,
) -> CuratedSubset:
    """Report the totals of a subset of matched texts, and write its facts.

    Args:
        ctx: Context of the stage that made the subset.
        totals: Totals of the subset.
        matches: Matches that it was drawn from.
        pairs: The dataset that was matched.
        texts: How texts were drawn, as in `CuratedSubset`.
        numbers: Further numbers to report, by name.
    """
    values = {"expected_texts": totals.expected, "kept_texts": totals.num_texts, "kept_samples": totals.num_samples}
    values = {f"curation/{name}": value for name, value in {**values, **(numbers or {})}.items()}
    ctx.emit("metrics", step=1, samples=totals.num_samples, values=values)
    return CuratedSubset.create(
        ctx.directory,
        num_samples=totals.num_samples,
        languages=[language for language in pairs.languages if language in totals.keys],
        pool=pool_of(pairs).reference(ctx.directory),
        matches=matches.reference(ctx.directory),
        texts=texts,
    )


def pool_of(pairs: PairDataset) -> Artifact:
    """Load the pool that a subset is a view of. A pool is returned as it is."""
    if not isinstance(pairs, CuratedSubset):
        return pairs
    return Pool.load(pairs.linked(pairs.pool))


def kept_samples(index: Iterable[Mapping[str, Any]]) -> int:
    """Sum the samples with a kept text over rows of a subset's index."""
    return sum(row["kept_samples"] for row in index if row["language"] is None)


def kept_languages(index: Iterable[Mapping[str, Any]]) -> set[str]:
    """Collect the languages of kept texts from rows of a subset's index."""
    return {row["language"] for row in index if row["language"] is not None and row["kept_texts"]}
