"""Configurations of the stages that bring a user's own images, pairs and caption-choice benchmarks into a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import Artifact, ChoiceDataset, ImageDataset, PairDataset, Pool, TaggedImages
from vfm.files import expand_paths
from vfm.stage import Ref, Stage

Verify = bool | Literal["all"]


class ImageFiles(Stage):
    """Base of all stages that index a user's images. The images stay where they are."""

    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="your data, local or remote: tars as `{000..009}.tar`, a list or a folder of tars, a folder of"
        " images, a CLIP_benchmark folder, a table (csv, tsv, jsonl, parquet), COCO's captions (json), a dataset that"
        " Hugging Face's datasets saved (folder), a list of image paths (txt); set it with --set 'NAME.path=...'"
    )
    format: Literal["auto", "webdataset", "folder", "table", "parquet", "coco"] = Field(
        "auto", description="format of the path; auto: by the file names"
    )
    image_key: str | None = Field(
        None, description="tars: extensions of the image, `jpg,png`; tables: column of the image or its path"
    )
    image_root: str | None = Field(
        None,
        description="folder that a table's image paths are relative to and may not leave; default: the table's; of"
        " COCO's captions: the folder beside them that has the images",
    )
    num_samples: int | None = Field(None, ge=1, description="use only the first N samples; default: all")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of bad samples")
    verify: Verify = Field(
        True,
        description="read every sample of shards without a known count and leave bad ones out; all: also of parquet and"
        " of tars beside img2dataset's statistics, which have a count; false: only count",
    )

    def sources(self) -> Iterable[str]:
        """Return the files behind `path`."""
        root = self.image_root
        return [*expand_paths(self.path), *([root] if root and root != "/" else [])]


class Images(ImageFiles):
    """Index your own images, without captions or labels."""

    kind: Literal["data.images"] = "data.images"

    makes: ClassVar[type[Artifact]] = ImageDataset
    work: ClassVar[str] = "vfm.data.image_files:index_images"
    checks: ClassVar[str] = "vfm.data.image_files:check_images"


class Pairs(ImageFiles):
    """Index your own image-text pairs, with one or more captions per image, in one or more languages."""

    kind: Literal["data.pairs"] = "data.pairs"
    texts: dict[str, str] = Field(
        default={},
        description="language: location of its captions, one of `txt`, `txt.lines` (one per line), `txt.first` (first"
        " line), `txt.WORD` (lines `WORD=...`), `json.FIELD` or a column; default: en from `txt` (`txt.lines` in a"
        " CLIP_benchmark retrieval folder), or from the table's caption column",
    )
    images: bool | Literal["auto"] = Field(
        "auto",
        description="false: captions only (csv, tsv, jsonl or txt with one a line, also .gz, parquet), to be curated;"
        " columns `uid` and `url` are kept; no model can be trained on it; auto: false for captions without images",
    )
    columns: list[str] | None = Field(
        None, min_length=1, description="column names of a csv or tsv file of captions without a header"
    )

    version: ClassVar[int] = 3
    makes: ClassVar[type[Artifact]] = Pool
    work: ClassVar[str] = "vfm.data.pairs:index_pairs"
    checks: ClassVar[str] = "vfm.data.pairs:check_pairs"

    @model_validator(mode="after")
    def _columns_of_captions(self) -> Pairs:
        if self.columns and self.images is True:
            raise ValueError("columns is only valid for a table of captions: set images: false")
        return self


class ChoiceFiles(Stage):
    """Import a caption-choice benchmark: MMVP-VLM, SugarCrepe, Winoground, or your own items in JSON lines."""

    kind: Literal["data.choices"] = "data.choices"
    path: str = Field(
        description="MMVP-VLM folder (Questions.csv and its images); SugarCrepe .json file or a folder of them;"
        " Winoground examples.jsonl or .parquet; your own .jsonl; set it with --set 'NAME.path=...'"
    )
    image_root: str | None = Field(
        None, description="folder of the images: COCO val2017 for SugarCrepe; Winoground defaults to `images` beside it"
    )
    max_bad_fraction: float = Field(0.0, ge=0, le=1, description="tolerated fraction of bad items")

    makes: ClassVar[type[Artifact]] = ChoiceDataset
    work: ClassVar[str] = "vfm.data.choice_files:import_choices"
    checks: ClassVar[str] = "vfm.data.choice_files:check_choices"

    def sources(self) -> Iterable[str]:
        """Return the folder or file, and the folder of its images."""
        return [self.path, *([self.image_root] if self.image_root else [])]


class CaptionLabels(Stage):
    """Label images with the most common nouns of their captions, several per image, for probing."""

    kind: Literal["data.caption_labels"] = "data.caption_labels"
    data: Ref[PairDataset] = Field(description="images with captions; an image has each word that any caption contains")
    language: str | None = Field(None, description="language of the captions; default: the dataset's first")
    num_labels: int = Field(20, ge=1, description="number of labels: the words that occur for most images")
    wordnet: str | None = Field(
        None, description="folder of WordNet's index.noun, noun.exc, verb.exc and cntlist.rev: nouns, in the singular"
    )
    words: list[str] = Field([], description="words to choose from, instead of WordNet's nouns")
    like: Ref[TaggedImages] | None = Field(
        None, description="reuse the labels of this artifact, for example for the test images of a probe"
    )
    thirds: bool = Field(
        False,
        description="also evaluate the most frequent third of the labels (head), the middle and the rarest (tail)"
        " as groups; `like` takes over those of its artifact",
    )

    version: ClassVar[int] = 2
    makes: ClassVar[type[Artifact]] = TaggedImages
    work: ClassVar[str] = "vfm.data.caption_labels:label_captions"
    checks: ClassVar[str] = "vfm.data.caption_labels:check_caption_labels"

    @model_validator(mode="after")
    def _one_list(self) -> CaptionLabels:
        if bool(self.wordnet) == bool(self.words):
            raise ValueError("give exactly one of wordnet and words")
        if self.thirds and self.like:
            raise ValueError("thirds: set it for the labels of `like`, which are reused with their groups")
        return self

    def sources(self) -> Iterable[str]:
        """Return WordNet's folder."""
        return [self.wordnet] if self.wordnet else []


STAGES: list[type[Stage]] = [Images, Pairs, ChoiceFiles, CaptionLabels]
