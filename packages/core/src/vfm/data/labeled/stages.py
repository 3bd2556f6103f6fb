"""Configurations of the stages that import labelled images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vfm.base import UserError
from vfm.data.indexing.stages import ImageFiles
from vfm.data.prompts.clip_benchmark import CLASS_NAMES_FILE, TEMPLATES_FILE, file_beside, list_files
from vfm.data.prompts.templates import check_templates
from vfm.data.tables.hub_files import DEFAULT
from vfm.interfaces import Artifact, LabeledDataset, PairDataset, Ref, Stage, TaggedImages
from vfm.storage.files import read_text


def _read_names(names: Any) -> Any:
    """Read the lines of a file that is given in place of the names."""
    if not isinstance(names, str):
        return names
    try:
        lines = list(map(str.strip, read_text(names).rstrip().splitlines()))
    except (OSError, UserError) as error:
        raise ValueError(f"expected a list of names, or a file with one per line, got {names!r}: {error}") from None
    if "" in lines:
        raise ValueError(f"{names}: the name of class {lines.index('')} is empty")
    return lines


ClassNames = Annotated[list[str], BeforeValidator(_read_names, json_schema_input_type=list[str] | str)]


class NamedImages(ImageFiles):
    """Base of the stages with class names and prompt templates."""

    split: str = Field(
        DEFAULT, description="split of a CLIP_benchmark folder, a folder of Parquet files, or the torchvision dataset"
    )
    class_names: ClassNames = Field(
        default=[],
        description="class names in the order of the labels, or a file with one per line (default: from the folders,"
        " the table or classnames.txt)",
    )
    templates: list[str] = Field(
        default=[],
        description="prompts with a `{}` (default: the lines of zeroshot_classification_templates.txt, otherwise"
        " `a photo of a {}.`)",
    )
    names_of: str | None = Field(
        None,
        description="default class names and templates from the clip_benchmark package for this dataset: `mnist`, or in"
        " another language `imagenet1k/ar`. Needs the extra `clip-benchmark` of vfm-core",
    )

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: list[str]) -> list[str]:
        return check_templates(templates)

    def sources(self) -> Iterable[str]:
        """List the files behind `path`, the files next to them that name the classes, and the package's lists."""
        paths = list(super().sources())
        data = paths[0]
        for name in (CLASS_NAMES_FILE, TEMPLATES_FILE):
            file = file_beside(data, name)
            if file:
                paths.append(file)
        if self.names_of:
            paths += list_files(self.names_of)
        return paths


class Labeled(NamedImages):
    """Index your own labelled images.

    They are in class folders, in tars with `cls`, in tables, or in a torchvision dataset by name.
    """

    kind: Literal["data.labeled"] = "data.labeled"
    torchvision: str | None = Field(
        None, description="name of a torchvision dataset (FashionMNIST, EuroSAT, ...) whose files are in `path`"
    )
    label_key: str | None = Field(
        None, description="location of the class: `cls`, `json.FIELD` or a column (class folders need none)"
    )

    makes: ClassVar[type[Artifact]] = LabeledDataset
    work: ClassVar[str] = "vfm.data.labeled.labeled:index_labeled"
    checks: ClassVar[str] = "vfm.data.labeled.labeled:check_labeled"

    @model_validator(mode="after")
    def _one_place(self) -> Labeled:
        if self.torchvision and not isinstance(self.path, str):
            raise ValueError("path must be one folder when torchvision is given")
        return self


class Tagged(NamedImages):
    """Index your own images with several labels each.

    They are in tars with `npy` (CLIP_benchmark's) or a list in `json`.
    """

    kind: Literal["data.tagged"] = "data.tagged"
    labels_key: str = Field(
        "npy", description="location of the labels: `npy` (one flag per class) or `json.FIELD` (a list)"
    )

    makes: ClassVar[type[Artifact]] = TaggedImages
    work: ClassVar[str] = "vfm.data.labeled.labeled:index_tagged"
    checks: ClassVar[str] = "vfm.data.labeled.labeled:check_tagged"


class Digits(Stage):
    """Pack scikit-learn's handwritten digits (8 x 8 pixels): a real dataset that needs no download."""

    kind: Literal["data.digits"] = "data.digits"
    split: Literal["train", "test"] = Field("test", description="train: the first 898 of the 1,797 images")

    makes: ClassVar[type[Artifact]] = LabeledDataset
    work: ClassVar[str] = "vfm.data.labeled.labeled:pack_digits"


class CaptionLabels(Stage):
    """Label images with the most common nouns of their captions, several per image, for probing."""

    kind: Literal["data.caption_labels"] = "data.caption_labels"
    data: Ref[PairDataset] = Field(
        description="images with captions. An image has each word that any of its captions contains"
    )
    language: str | None = Field(None, description="language of the captions (default: the dataset's first)")
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
        " as groups. With `like`, its groups are reused",
    )

    version: ClassVar[int] = 2
    makes: ClassVar[type[Artifact]] = TaggedImages
    work: ClassVar[str] = "vfm.data.labeled.caption_labels:label_captions"
    checks: ClassVar[str] = "vfm.data.labeled.caption_labels:check_caption_labels"

    @model_validator(mode="after")
    def _one_list(self) -> CaptionLabels:
        if bool(self.wordnet) == bool(self.words):
            raise ValueError("give exactly one of wordnet and words")
        if self.thirds and self.like:
            raise ValueError("thirds: set it for the labels of `like`, which are reused with their groups")
        return self

    def sources(self) -> Iterable[str]:
        """List WordNet's folder."""
        return [self.wordnet] if self.wordnet else []
