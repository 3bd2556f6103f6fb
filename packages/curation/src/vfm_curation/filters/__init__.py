"""Filters of image-text pairs, one a file, and the sieve that takes a pool through them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vfm_curation.filters.base import Filter, LocalFilter
from vfm_curation.filters.captions import CaptionLength
from vfm_curation.filters.clip_score import ClipScore
from vfm_curation.filters.decontaminate import Decontaminate
from vfm_curation.filters.duplicates import Duplicates
from vfm_curation.filters.image_size import ImageSize
from vfm_curation.filters.language import Language
from vfm_curation.filters.linear_score import LinearScore
from vfm_curation.filters.near_duplicates import NearDuplicates
from vfm_curation.filters.semantic_duplicates import SemanticDuplicates

AnyFilter = Annotated[
    CaptionLength
    | ImageSize
    | Language
    | Duplicates
    | NearDuplicates
    | SemanticDuplicates
    | ClipScore
    | LinearScore
    | Decontaminate,
    Field(discriminator="type"),
]

__all__ = [
    "AnyFilter", "CaptionLength", "ClipScore", "Decontaminate", "Duplicates", "Filter", "ImageSize", "Language",
    "LinearScore", "LocalFilter", "NearDuplicates", "SemanticDuplicates",
]  # fmt: skip
