"""Configurations of `curation.match`, `.balance`, `.random` and `.export`: from a pool to a curated subset."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import CuratedSubset, PoolCuration, Ref
from vfm_curation.runtime import CurationRuntime, TailRule, TextsOfImage

Positive = Annotated[float, Field(gt=0)]


class MetaclipBalance(PoolCuration):
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
    tail_rule: TailRule = Field(
        "interpolated",
        description="t of a tail share: between the counts of two entries, or the count of the entry whose share is"
        " nearest, as in MetaCLIP 2's code",
    )
    texts: TextsOfImage = Field(
        "every",
        description="draw every text independently (MetaCLIP 1), or first choose one text of each image at random"
        " (MetaCLIP 2)",
    )
    runtime: CurationRuntime = Field(CurationRuntime(), description="how it runs: engine, workers, device, threads")

    version: ClassVar[int] = 5
    work: ClassVar[str] = "vfm_curation.balance.balance:balance_texts"
    checks: ClassVar[str] = "vfm_curation.balance.balance:check_balance"

    @model_validator(mode="after")
    def _one_rule(self) -> MetaclipBalance:
        if self.t == {}:
            raise ValueError("t: expected one number, or one for each language, got {}")
        if [self.t, self.target_size, self.tail_share].count(None) != 2:
            raise ValueError("give exactly one of t, target_size and tail_share")
        if self.reference_language is not None and (self.tail_share or isinstance(self.t, dict)):
            raise ValueError("reference_language needs target_size or a single t; tail_share, or a t for each language,"
                             " already gives every language its t")  # fmt: skip
        if self.tail_rule != "interpolated" and not (self.tail_share or self.reference_language):
            raise ValueError("tail_rule is only valid with tail_share or reference_language")
        return self


class RandomSubset(PoolCuration):
    """Keep matched texts at random, whatever their entries, as the control of a balanced subset of the same size."""

    kind: Literal["curation.random"] = "curation.random"
    target_size: int | None = Field(None, ge=1, description="expected number of kept texts")
    like: Ref[CuratedSubset] | None = Field(
        None, description="subset whose number of kept texts is expected, such as a result of curation.balance"
    )
    runtime: CurationRuntime = Field(CurationRuntime(), description="how it runs: engine, workers, device, threads")

    work: ClassVar[str] = "vfm_curation.balance.random_subset:random_texts"
    checks: ClassVar[str] = "vfm_curation.balance.random_subset:check_random"

    @model_validator(mode="after")
    def _one_size(self) -> RandomSubset:
        if (self.target_size is None) == (self.like is None):
            raise ValueError("give exactly one of target_size and like")
        return self
