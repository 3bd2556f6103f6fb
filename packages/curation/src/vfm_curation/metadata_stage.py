"""The stage `curation.metadata`: the list of entries that texts are matched against."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import Metadata, Pool
from vfm.config import UserError
from vfm.stage import Context, Preflight, Ref, Stage


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

    version: ClassVar[int] = 2

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
            pool.check_languages(self.languages or (), str(self.captions))

    def run(self, ctx: Context) -> Metadata:
        """Writes `entries.parquet`: language, entry and source, in their frozen order."""
        from vfm_curation.matching import dead_entries
        from vfm_curation.metadata import EntryList, entries_sha256, save_entries
        from vfm_curation.metadata.panels import metadata_panels

        entries = EntryList(self.size)
        entries.add(self._from_captions(ctx, self.captions) if self.captions else self._from_file(str(self.path)))
        rows = list(entries)
        if not rows:
            raise UserError(f"{self.path}: holds no entries (empty lines and lone punctuation marks do not count)")
        save_entries(ctx.directory, rows)
        dead = dead_entries(entry for _, entry, _ in rows)
        for panel in metadata_panels(rows, dead):
            ctx.panel(panel)
        if dead:
            ctx.warn(f"{len(dead)} of {len(rows)} entries can never match; the panel 'Dead entries' says why")
        ctx.emit("metrics", step=1, samples=len(rows), values={"curation/num_entries": len(rows)})
        return Metadata.create(
            ctx.directory, num_entries=len(rows), sha256=entries_sha256(rows), languages=entries.languages
        )

    def _from_file(self, path: str) -> dict[str, str]:
        from vfm_curation.metadata import read_entries

        return read_entries(path, column=self.column)

    def _from_captions(self, ctx: Context, captions: Ref[Pool]) -> dict[str, str]:
        from vfm.data import open_dataset
        from vfm_curation.metadata import Vocabulary
        from vfm_curation.shards import texts_in

        pool = ctx.load(captions)
        pool.check_languages(self.languages or (), captions)
        languages = self.languages or pool.languages[:1]
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
