"""Configurations of the stages that index a user's own images and image-text pairs."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.data.indexing.stages import ImageFiles
from vfm.data.samples.caption_templates import Texts
from vfm.interfaces import (
    Artifact,
    ImageDataset,
    Pool,
)


class Images(ImageFiles):
    """Index your own images, without captions or labels."""

    kind: Literal["data.images"] = "data.images"

    makes: ClassVar[type[Artifact]] = ImageDataset
    work: ClassVar[str] = "vfm.data.pairs.image_files:index_images"
    checks: ClassVar[str] = "vfm.data.pairs.image_files:check_images"


class Pairs(ImageFiles):
    """Index your own image-text pairs, with one or more captions per image, in one or more languages."""

    kind: Literal["data.pairs"] = "data.pairs"
    texts: Texts = Field(
        default={},
        description="language: location of its captions, one of `txt`, `txt.lines` (one per line), `txt.first` (first"
        " line), `txt.WORD` (lines `WORD=...`), `json.FIELD` or a column (default: en from `txt`, from `txt.lines` in a"
        " CLIP_benchmark retrieval folder, or from the table's caption column). Or a template with locations in braces,"
        " `a photo of a {name}`, where `{label}` is a class folder. A location alone is for en",
    )
    images: bool | Literal["auto"] = Field(
        "auto",
        description="false: captions only, for curation (parquet, or csv, tsv, jsonl or txt with a caption per line,"
        " also .gz). The columns `uid` and `url` are kept, and no model can be trained on the result. auto: false for"
        " captions without images",
    )
    header: list[str] | None = Field(
        None, min_length=1, description="column names of a csv or tsv file of captions without a header"
    )

    version: ClassVar[int] = 3
    makes: ClassVar[type[Artifact]] = Pool
    work: ClassVar[str] = "vfm.data.pairs.pairs:index_pairs"
    checks: ClassVar[str] = "vfm.data.pairs.pairs:check_pairs"

    @model_validator(mode="after")
    def _header_of_captions(self) -> Pairs:
        if self.header and self.images is True:
            raise ValueError("header is only valid for a table of captions: set images: false")
        return self
