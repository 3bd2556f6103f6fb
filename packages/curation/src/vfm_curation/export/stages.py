"""Configuration of `curation.export`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import Artifact, CuratedSubset, Pool, Ref, Seed
from vfm_curation.runtime import CurationStage


class ExportSubset(CurationStage):
    """Write a curated subset as files for other tools.

    The result is the pool of the tars. It is empty if no tars are written.
    """

    kind: Literal["curation.export"] = "curation.export"
    subset: Ref[CuratedSubset] = Field(description="subset to write")
    pairs: bool = Field(
        True,
        description="`pairs.parquet/`: one row for each text: uid, key, url, shard, row, language, text_index, text,"
        " entries, probability, kept, reason",
    )
    uids: bool = Field(
        True, description="`uids.npy`: the kept samples' 128-bit uids, sorted, as DataComp's tools read them"
    )
    links: bool = Field(
        False,
        description="`links/*.parquet`: url, caption, uid, texts, key, shard, row of kept samples, for img2dataset",
    )
    tars: bool = Field(False, description="`tars/*.tar`: the kept samples with their kept texts, images byte for byte")
    samples_per_shard: int = Field(10_000, ge=1, description="samples in a tar")
    shuffle_shards: int = Field(
        100, ge=1, description="shards of the pool whose samples are shuffled together for the tars"
    )
    seed: Seed = Field(0, description="seed of the tars' order")

    version: ClassVar[int] = 3
    makes: ClassVar[type[Artifact]] = Pool
    work: ClassVar[str] = "vfm_curation.export.export:export_subset"
    checks: ClassVar[str] = "vfm_curation.export.export:check_export"

    @model_validator(mode="after")
    def _writes_something(self) -> ExportSubset:
        if not (self.pairs or self.uids or self.links or self.tars):
            raise ValueError("set at least one of pairs, uids, links and tars")
        return self
