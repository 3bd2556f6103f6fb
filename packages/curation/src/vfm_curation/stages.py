"""The stages of MetaCLIP curation: an entry list, the entries in each text, and the balanced subset.

The mathematics is in `matching`, `metadata` and `balance`; here are files, progress and complaints. Nothing heavy is
imported before a stage runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from vfm.artifacts import CuratedSubset, Matches, Metadata, Pool
from vfm.config import UserError
from vfm.interfaces import Curation
from vfm.stage import Context, Preflight, Ref, Stage

if TYPE_CHECKING:
    from vfm.panels import Panel
    from vfm_curation.balance import Floats, Integers
    from vfm_curation.data_card import DataCard
    from vfm_curation.shards import MatchJob, ShardSummary
    from vfm_curation.subset import BalancedShard

COUNTS_FILE = "counts.npy"


class BuildMetadata(Stage):
    """Makes the list of entries that captions are matched against: from the captions themselves or from a file."""

    kind: Literal["curation.metadata"] = "curation.metadata"
    captions: Ref[Pool] | None = Field(None, description="pool whose captions the entries are taken from")
    path: str | None = Field(
        None, description="list of entries (.txt, .json, .csv, .tsv), or a folder of WordNet files"
    )
    column: str | None = Field(
        None, description="of a .csv or .tsv with a header; default: the first, without a header"
    )
    size: int | None = Field(None, ge=1, description="at most this many entries; default: all that qualify")
    min_count: int = Field(5, ge=1, description="from captions: occurrences that a word needs")
    bigram_min_count: int = Field(5, ge=1, description="from captions: occurrences that a pair of words needs")
    bigram_share: float = Field(0.3, ge=0, le=1, description="from captions: share of pairs, strongest PMI first")
    languages: list[str] | None = Field(None, min_length=1, description="of the captions; default: the pool's first")

    @model_validator(mode="after")
    def _one_source(self) -> BuildMetadata:
        if (self.captions is None) == (self.path is None):
            raise ValueError("give exactly one of captions (a pool) and path (a list of entries)")
        return self

    def sources(self) -> list[str]:
        """The file of entries."""
        return [self.path] if self.path else []

    def preflight(self, ctx: Preflight) -> None:
        """The file is readable and holds entries; the pool has the languages."""
        if self.path:
            self._from_file(self.path)
        pool = self.captions and ctx.artifact(self.captions)
        if pool:
            wanted_languages(pool, self.languages, str(self.captions))

    def run(self, ctx: Context) -> Metadata:
        """Writes `entries.parquet`: entry and source, in their frozen order."""
        from vfm_curation.data_card import metadata_panels
        from vfm_curation.matching import dead_entries
        from vfm_curation.metadata import entries_sha256, save_entries

        sources = self._from_captions(ctx, self.captions) if self.captions else self._from_file(str(self.path))
        save_entries(ctx.directory, sources)
        dead = dead_entries(sources)
        for panel in metadata_panels(sources, dead):
            ctx.panel(panel)
        if dead:
            ctx.warn(f"{len(dead)} of {len(sources)} entries can never match; the panel 'Dead entries' says why")
        ctx.emit("metrics", step=1, samples=len(sources), values={"curation/num_entries": len(sources)})
        return Metadata.create(ctx.directory, num_entries=len(sources), sha256=entries_sha256(sources))

    def _from_file(self, path: str) -> dict[str, str]:
        from vfm_curation.metadata import read_entries

        sources = read_entries(path, column=self.column)
        if not sources:
            raise UserError(f"{path}: holds no entries (empty lines and lone punctuation marks do not count)")
        return dict(list(sources.items())[: self.size])

    def _from_captions(self, ctx: Context, captions: Ref[Pool]) -> dict[str, str]:
        from vfm.data import open_dataset
        from vfm_curation.metadata import Vocabulary
        from vfm_curation.shards import texts_in

        pool = ctx.load(captions)
        languages = wanted_languages(pool, self.languages, captions)
        source, vocabulary = open_dataset(pool), Vocabulary()
        num_shards = len(source.shard_sizes)
        for shard in range(num_shards):
            for text in texts_in(source, shard, languages, on_bad=ctx.skip)["text"].to_pylist():
                vocabulary.add(text)
            ctx.progress(shard + 1, num_shards, unit="shards", words=len(vocabulary.unigrams))
        sources = vocabulary.entries(
            self.size,
            min_count=self.min_count,
            bigram_min_count=self.bigram_min_count,
            bigram_share=self.bigram_share,
        )
        if not sources:
            raise UserError(
                f"{self.name}: no word stands {self.min_count} times in the captions of '{captions}'"
                f" ({vocabulary.num_words} words in all); lower min_count or give path"
            )
        return sources


class MatchTexts(Stage):
    """Finds the entries in each text of a pool, and counts the texts of each entry."""

    kind: Literal["curation.match"] = "curation.match"
    pool: Ref[Pool] = Field(description="whose texts are matched")
    metadata: Ref[Metadata] = Field(description="the entries to look for")
    languages: list[str] | None = Field(None, min_length=1, description="texts to match; default: the pool's first")

    def preflight(self, ctx: Preflight) -> None:
        """The pool has the languages."""
        pool = ctx.artifact(self.pool)
        if pool:
            wanted_languages(pool, self.languages, self.pool)

    def run(self, ctx: Context) -> Matches:
        """Writes one parquet file a shard (matched texts only) and `counts.npy`, texts by entry."""
        import numpy as np

        from vfm.data import open_dataset
        from vfm_curation.balance import count_ids
        from vfm_curation.shards import FOLDER, MatchJob, read_shards

        pool, metadata = ctx.load(self.pool), ctx.load(self.metadata)
        languages = tuple(wanted_languages(pool, self.languages, self.pool))
        job = MatchJob(pool.path, metadata.path, languages, ctx.work / FOLDER)
        job.folder.mkdir(exist_ok=True)
        total = self._match(ctx, job, len(open_dataset(pool).shard_sizes))
        if not total.num_matched:
            raise UserError(
                f"{self.name}: none of the {total.num_texts} texts of '{self.pool}' ({', '.join(languages)}) holds any"
                f" of the {metadata.num_entries} entries of '{self.metadata}'; case counts, and only whole words match"
            )
        counts = count_ids((shard.ids for shard in read_shards(ctx.work, only_ids=True)), metadata.num_entries)
        np.save(ctx.directory / COUNTS_FILE, counts)
        values = {"curation/num_texts": total.num_texts, "curation/num_matched": total.num_matched}
        ctx.emit("metrics", step=1, samples=total.num_texts, values=values)
        job.folder.rename(ctx.directory / FOLDER)  # last: a crash before it loses no shard
        return Matches.create(
            ctx.directory,
            pool=pool.reference(ctx.directory),
            metadata=metadata.reference(ctx.directory),
            num_texts=total.num_texts,
            num_matched=total.num_matched,
        )

    def _match(self, ctx: Context, job: MatchJob, num_shards: int) -> ShardSummary:
        from vfm_curation.shards import ShardSummary, match_shards

        total, begun = ShardSummary(), time.monotonic()
        for done, summary in enumerate(match_shards(job, range(num_shards), self.runtime.workers), 1):
            total.add(summary)
            for reason, where in summary.bad_shown:
                ctx.skip(reason, where)
            ctx.bad.update(summary.bad - Counter(reason for reason, _ in summary.bad_shown))
            rate = round(total.num_texts / max(1e-9, time.monotonic() - begun))
            per_text = round(total.num_pairs / max(1, total.num_texts), 2)
            ctx.progress(done, num_shards, unit="shards", texts_per_second=rate, matches_per_text=per_text)
        return total


class MetaclipBalance(Curation):
    """Keeps all texts of rare entries and about `t` of each common one."""

    kind: Literal["curation.balance"] = "curation.balance"
    t: float | None = Field(
        None, gt=0, description="texts per entry above which an entry is head; 20000 for 400M pairs"
    )
    target_size: int | None = Field(None, ge=1, description="expected number of kept texts; t is solved from it")
    tail_share: float | None = Field(
        None, gt=0, lt=1, description="share of matches in entries below t, as in MetaCLIP 2; 0.06 in the papers"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> MetaclipBalance:
        if [self.t, self.target_size, self.tail_share].count(None) != 2:
            raise ValueError("give exactly one of t, target_size and tail_share")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """There are as many matched texts as wanted."""
        matches = ctx.artifact(self.matches)
        if matches and self.target_size and self.target_size > matches.num_matched:
            raise UserError(f"target_size {self.target_size} is not possible: {matches.num_matched} texts matched")

    def run(self, ctx: Context) -> CuratedSubset:
        """Writes `subset.parquet`, one row a kept text, and `entry_counts.parquet`, counts before and after."""
        import numpy as np

        from vfm_curation.balance import keep_probability
        from vfm_curation.data_card import DataCard
        from vfm_curation.metadata import load_entries
        from vfm_curation.subset import expected_size, write_subset

        matches = ctx.load(self.matches)
        pool = Pool.load(matches.linked(matches.pool))
        entries = load_entries(Metadata.load(matches.linked(matches.metadata)))
        counts = np.load(matches.path / COUNTS_FILE)
        t = self._solve_t(matches, counts)
        probability = keep_probability(counts, t)
        expected = expected_size(matches.path, probability)
        ctx.log(f"t = {t:g}: {expected:,.0f} of {matches.num_matched:,} matched texts are expected to be kept")
        made = write_subset(ctx.directory, self._shards(ctx, matches, probability), len(entries))
        if not made.num_texts:
            raise UserError(f"{self.name}: t = {t:g} keeps none of {matches.num_matched} matched texts; raise t")
        funnel = {"texts": matches.num_texts, "matched": matches.num_matched, "kept": made.num_texts}
        card = DataCard(entries, counts, made.counts, probability, t, funnel)
        card.save(ctx.directory)
        for panel in [*card.panels(), self._examples(matches, pool, card)]:
            ctx.panel(panel)
        values = {"t": t, "expected_texts": expected, "kept_texts": made.num_texts, "kept_samples": made.num_samples}
        values = {f"curation/{name}": value for name, value in values.items()}
        ctx.emit("metrics", step=1, samples=made.num_samples, values=values)
        return CuratedSubset.create(
            ctx.directory,
            num_samples=made.num_samples,
            languages=[language for language in pool.languages if language in made.languages],
            pool=pool.reference(ctx.directory),
        )

    def _solve_t(self, matches: Matches, counts: Integers) -> float:
        from vfm_curation.balance import keep_probability, t_for_tail_share, t_for_target_size
        from vfm_curation.subset import expected_size

        if self.target_size:
            return t_for_target_size(
                lambda t: expected_size(matches.path, keep_probability(counts, t)), self.target_size, int(counts.max())
            )
        if self.tail_share:
            return t_for_tail_share(counts, self.tail_share)
        assert self.t
        return self.t

    def _shards(self, ctx: Context, matches: Matches, probability: Floats) -> Iterator[BalancedShard]:
        from vfm_curation.shards import num_shards, read_shards
        from vfm_curation.subset import balance_shard

        total, num_kept = num_shards(matches.path), 0
        for done, shard in enumerate(read_shards(matches.path), 1):
            balanced = balance_shard(shard, probability, self.seed)
            num_kept += int(balanced.kept.sum())
            yield balanced
            ctx.progress(done, total, unit="shards", kept=num_kept)

    def _examples(self, matches: Matches, pool: Pool, card: DataCard) -> Panel:
        """Texts of the first shard that has any, as they fared."""
        from vfm.data import open_dataset
        from vfm_curation.data_card import examples_panel
        from vfm_curation.shards import read_shards, texts_in
        from vfm_curation.subset import balance_shard

        shard = next(shard for shard in read_shards(matches.path) if len(shard.table))
        languages = shard.table["language"].unique().to_pylist()
        texts = texts_in(open_dataset(pool), shard.table["shard"][0].as_py(), languages)
        return examples_panel(balance_shard(shard, card.probability, self.seed), texts, card.entries, card.matched)


def wanted_languages(pool: Pool, languages: Sequence[str] | None, name: str) -> list[str]:
    """The languages to work on: those given, else the pool's first.

    Raises:
        UserError: the pool has no texts in one of them.
    """
    pool.check_languages(languages or (), name)
    return list(languages or pool.languages[:1])
