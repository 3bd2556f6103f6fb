"""Configuration of `curation.match`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.plugin import Artifact, CuratedSubset, Matches, Metadata, Pool, Ref
from vfm_curation.runtime import MAX_BAD_FRACTION, CurationStage, Semantics


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
        " in every language, so no space is needed next to punctuation and CJK; fixed: also splits at full-width marks"
        " and double quotes, and treats kana as a script without spaces",
    )
    detect_language: bool = Field(
        False, description="match a text against the entries of its detected language instead of its key's"
    )
    verify: bool = Field(
        False,
        description="compare bytes where hash keys are equal, at half the speed (about 0.01 false matches are expected"
        " in 10^10 texts without it)",
    )
    max_bad_fraction: float = MAX_BAD_FRACTION

    version: ClassVar[int] = 5
    makes: ClassVar[type[Artifact]] = Matches
    work: ClassVar[str] = "vfm_curation.match.match:match_texts"
    checks: ClassVar[str] = "vfm_curation.match.match:check_match"
