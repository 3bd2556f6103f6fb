"""The stage `curation.export`: a curated subset as files for other tools, and as tars of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import CuratedSubset, Pool
from vfm.config import UserError
from vfm.stage import Context, Preflight, Ref, Seed, Stage

if TYPE_CHECKING:
    from vfm.data import Shard


class ExportSubset(Stage):
    """Writes a curated subset out. The result is the pool of the tars, without samples where none are written."""

    kind: Literal["curation.export"] = "curation.export"
    subset: Ref[CuratedSubset] = Field(description="what to write out")
    pairs: bool = Field(
        True, description="`pairs.parquet`: a row for each text: uid, language, entries, probability, kept, reason"
    )
    uids: bool = Field(
        True, description="`uids.npy`: the kept samples' 128-bit uids, sorted, as DataComp's tools take them"
    )
    links: bool = Field(
        False, description="`links/*.parquet`: url, caption, uid and texts of kept samples, as img2dataset takes them"
    )
    tars: bool = Field(False, description="`tars/*.tar`: the kept samples with their kept texts, images as they are")
    samples_per_shard: int = Field(10_000, ge=1, description="samples of a tar")
    shuffle_shards: int = Field(100, ge=1, description="shards of the pool whose samples are shuffled together in tars")
    seed: Seed = Field(0, description="of the tars' order")

    version: ClassVar[int] = 2

    @model_validator(mode="after")
    def _something(self) -> ExportSubset:
        if not (self.pairs or self.uids or self.links or self.tars):
            raise ValueError("set at least one of pairs, uids, links and tars")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """There are images where tars are wanted."""
        if subset := ctx.artifact(self.subset):
            self._check(subset)

    def run(self, ctx: Context) -> Pool:
        """Writes what is wanted, and the index of the tars."""
        from vfm.data import DatasetSpec, write_index
        from vfm.panels import TablePanel
        from vfm_curation.export import PAIRS_FILE, UIDS_FILE, write_pairs, write_uids

        subset = ctx.load(self.subset)
        self._check(subset)
        rows: list[list[str | float | int | None]] = []
        if self.pairs:
            rows.append([PAIRS_FILE, "texts", write_pairs(subset, ctx.directory)])
        if self.uids:
            write_uids(subset, ctx.directory)
            rows.append([UIDS_FILE, "samples", subset.num_samples])
        if self.links:
            rows.append(["links/*.parquet", "links", self._links(ctx, subset)])
        shards = self._tars(ctx, subset) if self.tars else []
        spec = DatasetSpec(texts={language: f"json.{language}" for language in subset.languages})
        num_samples = write_index(ctx.directory, shards, spec)
        if self.tars:
            rows.append([f"tars/{{{len(shards)} tars}}", "samples", num_samples])
        ctx.panel(TablePanel(title="Exported files", order=10, columns=["file", "of", "rows"], rows=rows))
        return Pool.create(
            ctx.directory, num_samples=num_samples, bad_samples=dict(ctx.bad), languages=subset.languages
        )

    def _check(self, subset: CuratedSubset) -> None:
        from vfm.data import read_index

        if self.tars and not read_index(subset.linked(subset.pool)).spec.images:
            raise UserError(f"{self.name}: tars of '{self.subset}' are not possible: its pool has captions alone")

    def _links(self, ctx: Context, subset: CuratedSubset) -> int:
        from vfm_curation.engine import run_shards, told
        from vfm_curation.export import LINKS_FOLDER, LinksJob, opened, write_links

        job = LinksJob(subset.path, ctx.work / LINKS_FOLDER)
        job.folder.mkdir(exist_ok=True)
        shards = [shard for shard, size in enumerate(opened(subset.path).shard_sizes) if size]
        found = list(told(ctx, run_shards(write_links, job, shards, self.runtime), len(shards)))
        num_links = sum(one.num_links for one in found)
        if not num_links:
            raise UserError(f"{self.name}: no sample of '{self.subset}' tells its address (json.url, or a column url)")
        if missing := sum(one.num_without for one in found):
            ctx.warn(f"{missing:,} samples tell no address and are left out of the links")
        job.folder.rename(ctx.directory / LINKS_FOLDER)
        return num_links

    def _tars(self, ctx: Context, subset: CuratedSubset) -> list[Shard]:
        from vfm.data import Shard
        from vfm_curation.engine import run_shards, told
        from vfm_curation.export_tars import TARS_FOLDER, TarsJob, write_shard

        job = TarsJob(subset.path, ctx.work / TARS_FOLDER, self.samples_per_shard, self.shuffle_shards, self.seed)
        job.folder.mkdir(exist_ok=True)
        number = -(-subset.num_samples // self.samples_per_shard)
        found = told(ctx, run_shards(write_shard, job, range(number), self.runtime), number)
        sizes = {one.shard: one.num_samples for one in found}
        folder = job.folder.rename(ctx.directory / TARS_FOLDER)
        return [Shard.of(folder / job.file(shard).name, sizes[shard]) for shard in range(number)]
