"""Configurations of `curation.match`, `.balance`, `.random` and `.export`: from a pool to a curated subset."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import Artifact, CuratedSubset, Curation, Matches, Metadata, Pool, Ref, Seed
from vfm_curation.stages.runtime import MAX_BAD_FRACTION, CurationRuntime, CurationStage

Positive = Annotated[float, Field(gt=0)]
Semantics = Literal["metaclip", "metaclip2", "fixed"]
TextsOfImage = Literal["every", "one_per_image"]


class MatchTexts(CurationStage):
    """Find the entries in each text of a pool, and count the texts of each entry."""

    kind: Literal["curation.match"] = "curation.match"
    pool: Ref[Pool | CuratedSubset] = Field(description="pool, or subset, whose texts are matched")
    metadata: Ref[Metadata] = Field(description="entries to look for")
    languages: list[str] | None = Field(
        None, min_length=1, description="languages of the texts to match; default: the pool's first"
    )
    semantics: Semantics = Field(
        "metaclip",
        description="metaclip: whole words, and MetaCLIP 2's rule only in languages without spaces; metaclip2: its rule"
        " in every language, so no space is needed beside punctuation and CJK; fixed: also splits at full-width marks"
        " and double quotes, and treats kana as a script without spaces",
    )
    detect_language: bool = Field(
        False, description="match a text against the entries of its detected language instead of its key's"
    )
    verify: bool = Field(
        False,
        description="compare bytes where hash keys are equal: half the speed; without it, about 0.01 false matches are"
        " expected in 10^10 texts",
    )
    max_bad_fraction: float = MAX_BAD_FRACTION

    version: ClassVar[int] = 4
    makes: ClassVar[type[Artifact]] = Matches
    work: ClassVar[str] = "vfm_curation.match:match_texts"
    checks: ClassVar[str] = "vfm_curation.match:check_match"


class MetaclipBalance(Curation):
    """Keep all texts of rare entries and about `t` texts of each frequent one."""

    kind: Literal["curation.balance"] = "curation.balance"
    t: Positive | dict[str, Positive] | None = Field(
        None,
        description="largest number of texts of a tail entry, 20000 for 400M pairs; one number, or one for each"
        " language of the entries: {en: 20000, de: 5000}",
    )
    target_size: int | None = Field(None, ge=1, description="expected number of kept texts; t is solved for it")
    tail_share: float | None = Field(
        None, gt=0, lt=1, description="fraction of matches in entries below t, in each language; 0.06 in the papers"
    )
    reference_language: str | None = Field(
        None,
        description="with t or target_size: the language that t is for; every other language gets the t of the same"
        " tail share (MetaCLIP 2); default: one t for all",
    )
    texts: TextsOfImage = Field(
        "every",
        description="draw every text independently (MetaCLIP 1), or first choose one text of each image at random"
        " (MetaCLIP 2)",
    )
    runtime: CurationRuntime = Field(CurationRuntime(), description="how it runs: engine, workers, device, threads")

    version: ClassVar[int] = 5
    work: ClassVar[str] = "vfm_curation.balance:balance_texts"
    checks: ClassVar[str] = "vfm_curation.balance:check_balance"

    @model_validator(mode="after")
    def _one_rule(self) -> MetaclipBalance:
        if self.t == {}:
            raise ValueError("t: expected one number, or one for each language, got {}")
        if [self.t, self.target_size, self.tail_share].count(None) != 2:
            raise ValueError("give exactly one of t, target_size and tail_share")
        if self.reference_language is not None and (self.tail_share or isinstance(self.t, dict)):
            raise ValueError("reference_language needs target_size or a single t; tail_share, or a t for each language,"
                             " already gives every language its t")  # fmt: skip
        return self


class RandomSubset(Curation):
    """Keep matched texts at random, whatever their entries: the control of a balanced subset of the same size."""

    kind: Literal["curation.random"] = "curation.random"
    target_size: int | None = Field(None, ge=1, description="expected number of kept texts")
    like: Ref[CuratedSubset] | None = Field(
        None, description="subset whose number of kept texts is expected, such as that of curation.balance"
    )
    runtime: CurationRuntime = Field(CurationRuntime(), description="how it runs: engine, workers, device, threads")

    work: ClassVar[str] = "vfm_curation.random_subset:random_texts"
    checks: ClassVar[str] = "vfm_curation.random_subset:check_random"

    @model_validator(mode="after")
    def _one_size(self) -> RandomSubset:
        if (self.target_size is None) == (self.like is None):
            raise ValueError("give exactly one of target_size and like")
        return self


class ExportSubset(CurationStage):
    """Write a curated subset as files for other tools. The result is the pool of the tars; without tars it is empty."""

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
    work: ClassVar[str] = "vfm_curation.export:export_subset"
    checks: ClassVar[str] = "vfm_curation.export:check_export"

    @model_validator(mode="after")
    def _writes_something(self) -> ExportSubset:
        if not (self.pairs or self.uids or self.links or self.tars):
            raise ValueError("set at least one of pairs, uids, links and tars")
        return self
