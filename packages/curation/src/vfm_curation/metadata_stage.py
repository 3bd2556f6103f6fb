"""The stage `curation.metadata`: the list of entries that texts are matched against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import CuratedSubset, Metadata, Pool
from vfm.config import UserError
from vfm.stage import Context, Preflight, Ref, Stage
from vfm_curation.entry_sources import AnySource, Captions, CaptionSettings, Lists


class BuildMetadata(CaptionSettings, Stage):
    """Makes the list of entries that texts are matched against: from captions, from a list, or from many sources."""

    kind: Literal["curation.metadata"] = "curation.metadata"
    captions: Ref[Pool | CuratedSubset] | None = Field(None, description="whose captions the entries are taken from")
    path: str | None = Field(
        None, description="list of entries (.txt, .json, .csv, .tsv), or a folder of WordNet files"
    )
    column: str | None = Field(
        None, description="of a .csv or .tsv with a header; default: the first, without a header"
    )
    merge: list[AnySource] | None = Field(
        None,
        min_length=1,
        description="sources of entries in their order, each {type: captions, list, numbers, pageviews, wikipedia,"
        " wordnet or words, ...}; an entry belongs to the first that has it",
    )
    size: int | None = Field(
        None, ge=1, description="at most this many entries of each language; default: all that qualify"
    )

    version: ClassVar[int] = 3

    @model_validator(mode="after")
    def _one_source(self) -> BuildMetadata:
        if [self.captions, self.path, self.merge].count(None) != 2:
            raise ValueError(
                "give exactly one of captions (a pool), path (a list of entries) and merge (several sources)"
            )
        strangers = sorted(self.model_fields_set & set(CaptionSettings.model_fields)) if not self.captions else []
        if strangers:
            raise ValueError(f"{', '.join(strangers)}: only with captions")
        return self

    @property
    def parts(self) -> Sequence[AnySource]:
        """The sources of the entries, also of the short forms."""
        if self.captions:
            settings = self.model_dump(include=set(CaptionSettings.model_fields))
            return [Captions(type="captions", pool=self.captions, size=self.size, **settings)]
        if self.path:
            return [Lists(type="list", path=self.path, column=self.column)]
        return self.merge or ()

    def sources(self) -> Iterable[str]:
        """The files of all sources."""
        return [file for part in self.parts for file in part.files()]

    def preflight(self, ctx: Preflight) -> None:
        """What each source can check: lists are readable, pools have the languages, extras are installed."""
        for part in self.parts:
            part.preflight(ctx)

    def run(self, ctx: Context) -> Metadata:
        """Writes `entries.parquet`: language, entry and source, in their frozen order; and `lint.parquet`."""
        from vfm_curation.metadata.entries import EntryList, entries_sha256, save_entries
        from vfm_curation.metadata.lint import lint, save_findings
        from vfm_curation.metadata.panels import metadata_panels

        entries = EntryList(self.size)
        for part in self.parts:
            for language, found in part.entries(ctx, self.runtime.workers):
                entries.add(found, language)
        if not len(entries):
            raise UserError(
                f"{self.path or self.name}: holds no entries (empty lines and lone punctuation marks do not count)"
            )
        save_entries(ctx.directory, entries)
        findings = lint(entries)
        save_findings(ctx.directory, findings)
        for panel in metadata_panels(entries, findings):
            ctx.panel(panel)
        num_dead = sum(finding.verdict == "dead" for finding in findings)
        if num_dead:
            ctx.warn(f"{num_dead} of {len(entries)} entries can never match; the panel 'Dead entries' says why")
        values = {"curation/num_entries": len(entries), "curation/num_dead": num_dead}
        ctx.emit("metrics", step=1, samples=len(entries), values=values)
        return Metadata.create(
            ctx.directory,
            num_entries=len(entries),
            sha256=entries_sha256(entries),
            languages=entries.languages,
        )
