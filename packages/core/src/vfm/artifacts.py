"""What stages hand to one another: typed folders on disk, the only way from one stage to the next.

`artifact.json` holds the facts (the fields below), files beside it the bulk: safetensors, parquet, npy. Never pickle.
This module is light: reading the bulk is the work of `vfm.data` and `vfm.models`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError

from vfm.config import Config, UserError, did_you_mean, error_lines

FACTS_FILE = "artifact.json"


class Artifact(Config):
    """A typed folder: its fields are the facts, `path` is where it lies."""

    types: ClassVar[dict[str, type[Artifact]]] = {}
    _path: Path = PrivateAttr(default=Path())

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        other = Artifact.types.setdefault(cls.__name__, cls)
        if other.__module__ != cls.__module__:
            raise TypeError(
                f"two artifact types are named {cls.__name__}: in {other.__module__} and in {cls.__module__}"
            )
        Artifact.types[cls.__name__] = cls

    @property
    def path(self) -> Path:
        """The folder of the artifact."""
        return self._path

    @classmethod
    def create(cls, directory: Path, **facts: Any) -> Self:
        """Writes the facts into `directory` and returns the artifact. The bulk is the caller's to write."""
        artifact = cls(**facts)
        artifact._path = directory
        directory.mkdir(parents=True, exist_ok=True)
        record = {"type": cls.__name__, **artifact.model_dump(mode="json")}
        (directory / FACTS_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return artifact

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Reads an artifact of this type (or of a subtype) back.

        Raises:
            UserError: the folder holds no artifact, one of another type, or one of a package that is not installed.
        """
        directory = Path(directory)
        try:
            record = json.loads((directory / FACTS_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{directory}: no artifact here ({FACTS_FILE} is missing)") from None
        except ValueError as error:
            raise UserError(f"{directory / FACTS_FILE}: not readable as JSON: {error}") from None
        name = record.pop("type", None) if isinstance(record, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{directory / FACTS_FILE}: not the facts of an artifact")
        found = Artifact.types.get(name)
        if found is None:
            raise UserError(
                f"{directory}: artifact type {name!r} is not known; the package that makes it is not installed"
            )
        if not issubclass(found, cls):
            raise UserError(f"{directory}: a {cls.__name__} is wanted, this is a {name}")
        try:
            artifact = found(**record)
        except ValidationError as error:
            where, line = error_lines(error, found)[0]
            raise UserError(f"{directory / FACTS_FILE}: {'.'.join(map(str, where))}: {line}") from None
        artifact._path = directory
        return artifact

    def reference(self, base: Path) -> str:
        """This artifact's address for the facts of another one in `base`: relative within a store, else absolute."""
        same_store = self.path.resolve().parent == base.resolve().parent
        return f"../{self.path.name}" if same_store else str(self.path.resolve())

    def linked(self, address: str) -> Path:
        """The folder that an address made by `reference` leads to, seen from this artifact."""
        return self.path / address  # an absolute one stays what it is


class ImageDataset(Artifact):
    """Images that can be read at random by an index over shards. Images stay where the user has them."""

    num_samples: int = Field(ge=0, description="images that can be read")
    bad_samples: dict[str, int] = Field(default={}, description="samples left out when indexing, by reason")


class PairDataset(ImageDataset):
    """Images with captions, several an image and in several languages perhaps."""

    languages: list[str] = Field(default=["en"], description="keys of the captions, the first is the default")

    def check_languages(self, languages: Iterable[str | None], name: str) -> None:
        """Refuses a language that has no captions here; None stands for the default one. `name` is ours.

        Raises:
            UserError: one line with what there is.
        """
        for language in languages:
            if language not in (None, *self.languages):
                hint = did_you_mean(str(language), self.languages)
                raise UserError(f"{name} has no captions in {language!r}{hint}")


class Pool(PairDataset):
    """Raw image-text pairs: an index over shards (path, size, fingerprint, number of samples)."""


class LinkTable(Pool):
    """Addresses of images with their texts: a pool to curate before anything is downloaded. No image can be read."""


class CuratedSubset(PairDataset):
    """A view of a Pool: the kept pairs and texts, with the probability of each. No image is copied."""

    pool: str = Field(description="address of the Pool")
    matches: str | None = Field(None, description="address of the Matches that were balanced; None: a filter's subset")
    texts: Literal["every", "one_per_image"] = Field(
        "every", description="whether each text is drawn by itself, or one text of each image is chosen first"
    )


class LabeledDataset(ImageDataset):
    """Images with one class label each, the class names and prompt templates with a `{}`."""

    class_names: list[str] = Field(description="by label")
    templates: list[str] = Field(["a photo of a {}."], description="prompts with a {} for the class name")
    class_groups: dict[str, list[int]] = Field({}, description="labels of classes judged together: head, middle, tail")


class TaggedImages(Artifact):
    """Which of a list of labels each image of a data set has, several perhaps: `tags.parquet`, a row an image."""

    data: str = Field(description="address of the data set")
    num_samples: int = Field(ge=0, description="images of the data set")
    class_names: list[str] = Field(description="the labels")
    templates: list[str] = Field(["a photo of a {}."], description="prompts with a {} for the label")
    num_images: list[int] = Field(description="images that have each label")


class ChoiceDataset(Artifact):
    """Images x statements with the right pairing, grouped by pattern (MMVP, Winoground, made pairs)."""

    num_pairs: int = Field(ge=0, description="items")
    patterns: list[str] = Field(description="what the items test, in the order in which they occur")


class Metadata(Artifact):
    """The entries that captions are matched against; an entry's id is its place, one numbering over all languages."""

    num_entries: int = Field(ge=1, description="entries in the list")
    sha256: str = Field(description="hash of the ordered entries and their languages")
    languages: list[str] = Field(default=[""], description="languages with entries; '' has those for texts of any")


class Matches(Artifact):
    """Entry ids of each text of a pool, and texts matched by each entry: any t can be tried without matching again."""

    pool: str = Field(description="address of the Pool")
    metadata: str = Field(description="address of the Metadata")
    num_texts: int = Field(ge=0, description="texts that were looked at")
    num_matched: int = Field(ge=0, description="texts with an entry")


class VisionCheckpoint(Artifact):
    """A vision encoder in timm's layout (`config.json`, `model.safetensors`), with or without a head."""

    architecture: str = Field(description="timm name")
    image_size: int = Field(description="pixels a side")
    width: int = Field(description="channels of the patch tokens")
    num_classes: int = Field(0, description="outputs of the head; 0: there is none")


class ClipCheckpoint(Artifact):
    """A CLIP model in open_clip's layout (`open_clip_config.json`, `open_clip_model.safetensors`)."""

    model: str = Field(description="open_clip name, or what the model was made from")
    image_size: int = Field(description="pixels a side")
    embed_dim: int = Field(description="width of the joint space")
    context_length: int = Field(description="tokens of a text")


class GeneratorCheckpoint(Artifact):
    """A diffusion model in diffusers' layout, and what conditions it."""

    sample_size: int = Field(description="of what is denoised, a side: pixels or latents")
    condition_width: int = Field(description="channels of the cross-attention context")
    prediction: Literal["epsilon", "v", "flow"] = Field(description="what the model says of the noise")


class SampleCache(Artifact):
    """Tensors by (sample, crop), in the order of a data set, all from one producer: a teacher's features, latents."""

    data: str = Field(description="address of the data set")
    producer: str = Field(description="what made the tensors: the address of a model, and how it was asked")
    num_samples: int = Field(ge=0, description="of the data set, those without tensors included")
    num_crops: int = Field(ge=1, description="crops of each sample")
    shape: tuple[int, ...] = Field(description="of one tensor")
    dtype: Literal["int8", "fp16", "fp32"] = Field(description="how the tensors are stored")
    basis: str = Field("", description="file of a PCA whose coordinates the tensors are; empty: they are what was said")
    samples_per_shard: int = Field(ge=1, description="samples of a file")
    crop_scale: tuple[float, float] | None = Field(
        description="share of the area that a random crop keeps; null: nothing is cropped at random"
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="narrowest and widest aspect of a random crop")
    flip: float = Field(description="chance of a left-right flip")
    seed: int = Field(description="with the numbers of crop and sample it draws the crop")
    bad_samples: dict[str, int] = Field(default={}, description="samples without tensors, by reason")


class Metric(Config):
    """One measured number with its uncertainty."""

    name: str = Field(description="such as acc1")
    value: float = Field(description="in its unit")
    unit: str = Field(default="share", description="share (0 to 1), or what the value counts")
    n: int = Field(description="number of independent items behind the value")
    low: float = Field(description="lower end of the 95 % interval")
    high: float = Field(description="upper end")
    model: str = Field(default="", description="name of the judged model's stage")
    chance: float | None = Field(default=None, description="expected value of a blind guess")


class Comparison(Config):
    """A model against the first one on the same items, or over the same seeds: the paired test."""

    metric: str = Field(description="by which they are compared")
    model: str = Field(description="who is compared")
    baseline: str = Field(description="with whom: the first model")
    difference: float = Field(description="the model's value minus the baseline's")
    low: float = Field(description="lower end of the 95 % interval of the difference")
    high: float = Field(description="upper end")
    p_value: float = Field(description="two-sided")
    test: str = Field(description="exact McNemar, sign flips, or paired t over seeds")


class Report(Artifact):
    """What an evaluation found: metrics with n and interval, paired tests; predictions lie beside as parquet."""

    task: str = Field(description="as results call it, such as zeroshot_classification")
    dataset: str = Field(description="name of the data set's stage")
    metrics: list[Metric] = Field(description="of each model by each metric")
    comparisons: list[Comparison] = Field([], description="of each later model with the first")
