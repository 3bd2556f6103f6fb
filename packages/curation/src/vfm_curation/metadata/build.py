"""Stage `curation.metadata`: build the list of entries that texts are matched against."""

from __future__ import annotations

from vfm.plugin import Context, Metadata, Preflight, UserError
from vfm_curation.metadata.entries import EntryList, entries_sha256, save_entries
from vfm_curation.metadata.lint import lint, metadata_panels, save_findings
from vfm_curation.metadata.stages import BuildMetadata


def check_metadata(config: BuildMetadata, ctx: Preflight) -> None:
    """Check that each source of metadata can be used.

    Lists must be readable, pools must have the languages, and extras must be installed.
    """
    for source in config.entry_sources:
        source.preflight(ctx)


def build_metadata(config: BuildMetadata, ctx: Context) -> Metadata:
    """Write `entries.parquet`, with language, entry and source in their final order, and `lint.parquet`."""
    entries = EntryList(config.size)
    for source in config.entry_sources:
        for language, new_entries in source.build(ctx, config.runtime.workers):
            entries.add(new_entries, language)
    if not len(entries):
        where = config.path or ", ".join(config.sources()) or config.name
        raise UserError(f"{where}: has no entries (empty lines and lone punctuation marks do not count)")
    save_entries(ctx.directory, entries)
    findings = lint(entries)
    save_findings(ctx.directory, findings)
    for panel in metadata_panels(entries, findings):
        ctx.panel(panel)
    num_dead = sum(finding.kind == "dead" for finding in findings)
    if num_dead:
        ctx.warn(f"{num_dead} of {len(entries)} entries can never match; the panel 'Dead entries' has the reasons")
    values = {"curation/num_entries": len(entries), "curation/num_dead": num_dead}
    ctx.emit("metrics", step=1, samples=len(entries), values=values)
    return Metadata.create(
        ctx.directory,
        num_entries=len(entries),
        sha256=entries_sha256(entries),
        languages=entries.languages,
    )
