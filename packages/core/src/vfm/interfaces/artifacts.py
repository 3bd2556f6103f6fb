"""Artifacts: typed folders on disk, the only way to pass data from one stage to the next.

`artifact.json` holds the facts (the fields below). Other files hold the bulk of the data, as safetensors, parquet or
npy, never as pickle. This module imports little. `vfm.data` and `vfm.models` read the bulk.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError

from vfm.base import Config, UserError, did_you_mean, error_lines, load_function
from vfm.storage.folder_checks import check_folder
from vfm.storage.store_files import read_json

FACTS_FILE = "artifact.json"
MANIFEST_FILE = "manifest.json"  # how a published artifact was made, with sizes and hashes of its files


class Artifact(Config):
    """A typed folder.

    The fields are its facts, and `path` is the folder.
    """

    types: ClassVar[dict[str, type["Artifact"]]] = {}
    caches: ClassVar[tuple[str, ...]] = ()  # folders that can be rebuilt, so they may change after publishing
    _path: Path = PrivateAttr(default=Path())

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        other = Artifact.types.setdefault(cls.__name__, cls)
        if other.__module__ != cls.__module__:
            raise TypeError(
                f"two artifact types are named {cls.__name__}, in {other.__module__} and in {cls.__module__}"
            )
        Artifact.types[cls.__name__] = cls

    @property
    def path(self) -> Path:
        """Folder of the artifact."""
        return self._path

    @classmethod
    def create(cls, directory: Path, **facts: Any) -> Self:
        """Write the facts into `directory` and build the artifact. The caller writes the bulk."""
        artifact = cls(**facts)
        artifact._path = directory
        directory.mkdir(parents=True, exist_ok=True)
        record = {"type": cls.__name__, **artifact.model_dump(mode="json")}
        (directory / FACTS_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return artifact

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True) -> Self:
        """Load an artifact of this type or a subtype.

        Args:
            directory: Its folder.
            verify: Compare the hashes of its files with its manifest.

        Raises:
            UserError: If the folder has no artifact, has one of another type or of a package that is not installed, or
                a file is missing or damaged.
        """
        directory = Path(directory)
        if not (directory / FACTS_FILE).exists():
            raise UserError(f"{directory}: no artifact found ({FACTS_FILE} is missing)")
        record = read_json(directory / FACTS_FILE)
        name = record.pop("type", None) if isinstance(record, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{directory / FACTS_FILE}: expected the facts of an artifact, got no 'type'")
        if name not in Artifact.types:
            load_function("vfm.interfaces.plugins:import_stages")()  # it may be defined by a plugin's stages
        artifact_type = Artifact.types.get(name)
        if artifact_type is None:
            raise UserError(f"{directory}: unknown artifact type {name!r}; is the package that makes it installed?")
        if not issubclass(artifact_type, cls):
            raise UserError(f"{directory}: expected {cls.__name__}, got {name}")
        try:
            artifact = artifact_type(**record)
        except ValidationError as error:
            where, line = error_lines(error, artifact_type)[0]
            raise UserError(f"{directory / FACTS_FILE}: {'.'.join(map(str, where))}: {line}") from None
        artifact._path = directory
        if verify:
            artifact.verify()
        return artifact

    def verify(self, on_much: Callable[[int], None] = lambda count: None) -> None:
        """Compare the hashes of the files with the manifest, unless this process has done so.

        Args:
            on_much: Called with the number of bytes to read if there are many.

        Raises:
            UserError: If a file is missing or damaged.
        """
        check_folder(self.path, MANIFEST_FILE, on_much=on_much)

    def reference(self, base: Path) -> str:
        """Build an address for the facts of another artifact in `base`.

        It is relative in the same store, and otherwise absolute.
        """
        same_store = self.path.resolve().parent == base.resolve().parent
        return f"../{self.path.name}" if same_store else str(self.path.resolve())

    def linked(self, address: str) -> Path:
        """Resolve an address that `reference` built for this artifact to its folder."""
        return self.path / address  # an absolute address replaces the path


class ImageDataset(Artifact):
    """Images with random access through an index over shards. The images stay where the user stores them."""

    caches: ClassVar[tuple[str, ...]] = ("offsets", "features")  # the reader of each checks it

    num_samples: int = Field(ge=0, description="number of usable images")
    bad_samples: dict[str, int] = Field(default={}, description="number of samples left out when indexing, by reason")


class PairDataset(ImageDataset):
    """Images with captions, one or more per image, in one or more languages."""

    languages: list[str] = Field(default=["en"], description="languages of the captions; the first is the default")

    def check_languages(self, languages: Iterable[str | None], name: str) -> None:
        """Check that each language has captions. None is the default language.

        Args:
            languages: Languages to check.
            name: Name of this dataset, for the error.

        Raises:
            UserError: If a language has no captions.
        """
        for language in languages:
            if language not in (None, *self.languages):
                hint = did_you_mean(str(language), self.languages)
                raise UserError(f"{name} has no captions in {language!r}{hint}")


class Pool(PairDataset):
    """Raw image-text pairs, stored as an index over shards."""


class LinkTable(Pool):
    """URLs of images with their texts, as a pool to curate before the images are downloaded. It contains no images."""


class TarList(PairDataset):
    """Tars of pairs that training reads sequentially. Their samples are not counted (`num_samples` is 0)."""

    lanes: int = Field(ge=1, description="lanes that are read side by side")
    lane_samples: int = Field(ge=1, description="samples that a lane gives before the next one follows")


class CuratedSubset(PairDataset):
    """A view of a Pool, with the kept pairs and texts and the probability of each. Images are not copied."""

    pool: str = Field(description="address of the Pool")
    matches: str | None = Field(
        None, description="address of the Matches that were balanced; None: the subset of a filter"
    )
    texts: Literal["every", "one_per_image"] = Field(
        "every", description="every: texts are drawn independently; one_per_image: one text per image is chosen first"
    )


class LabeledDataset(ImageDataset):
    """Images with one class label each, with class names and prompt templates."""

    class_names: list[str] = Field(description="class names in the order of the labels")
    templates: list[str] = Field(["a photo of a {}."], description="prompts with a {} for the class name")
    class_groups: dict[str, list[int]] = Field(
        {}, description="labels of classes that are also evaluated as a group, such as head, middle, tail"
    )


class AnnotatedImages(ImageDataset):
    """Images with objects (boxes, masks) or label maps.

    The folder has `images.parquet`, with one row per image, and `annotations.parquet`. The samples have the order of
    the rows of `images.parquet`. `vfm.data.annotated` reads and writes the files.
    """

    format: str = Field(description="source format of the annotations")
    labels: list[Literal["boxes", "masks", "semantic", "panoptic"]] = Field(description="kinds of labels")
    class_names: list[str] = Field(description="class names in the order of the labels")
    class_ids: list[int] = Field(description="id of each class in the source, also used in result files")
    things: list[bool] = Field(description="whether each class has instances; the others are regions, such as sky")
    background: int | None = Field(None, description="class of the pixels outside all masks; None: unlabelled")
    frequency: list[Literal["r", "c", "f"]] = Field(
        [], description="frequency group of each class in LVIS: in up to 10, up to 100, or more training images"
    )
    federated: bool = Field(False, description="each image is labelled for some classes only, as in LVIS")
    map_classes: list[int] = Field(
        [], description="class of each value of a label map, -1: ignored, -2: not allowed; empty: no label maps"
    )
    has_images: bool = Field(True, description="false: labels only, to score result files")
    num_objects: int = Field(0, ge=0, description="number of annotated objects")
    bad_annotations: dict[str, int] = Field(default={}, description="number of annotations left out, by reason")


class VideoDataset(Artifact):
    """Videos with one class each.

    The folder has `videos.parquet`, with one row per usable video. The videos stay where they are. `vfm.data.videos`
    reads and writes it.
    """

    num_samples: int = Field(ge=0, description="number of usable videos")
    bad_samples: dict[str, int] = Field(default={}, description="number of videos left out, by reason")
    unusual: dict[str, int] = Field(
        default={}, description="number of usable videos that are rotated or have a variable frame rate, by property"
    )
    left_out: dict[str, int] = Field(default={}, description="number of usable videos that a union left out, by reason")
    format: str = Field(description="layout of the files")
    class_names: list[str] = Field(description="class names in the order of the labels")
    reversals: dict[str, str] = Field(default={}, description="class of the reversed video for each class, where known")


class TaggedImages(Artifact):
    """Labels of the images of a dataset, zero or more per image.

    The folder has `tags.parquet`, with one row per image.
    """

    data: str = Field(description="address of the dataset")
    num_samples: int = Field(ge=0, description="number of images in the dataset")
    class_names: list[str] = Field(description="names of the labels")
    templates: list[str] = Field(["a photo of a {}."], description="prompts with a {} for the label")
    num_images: list[int] = Field(description="number of images with each label")
    class_groups: dict[str, list[int]] = Field(
        {}, description="labels that are also evaluated as a group, such as head, middle, tail"
    )


class ChoiceDataset(Artifact):
    """Images x statements with the correct pairing, grouped by pattern (MMVP, Winoground, synthetic pairs)."""

    num_pairs: int = Field(ge=0, description="number of items")
    patterns: list[str] = Field(description="patterns that the items test, in order of appearance")


class QuestionDataset(Artifact):
    """Multiple-choice questions about images, in `questions.parquet` and `images.arrow`."""

    num_questions: int = Field(ge=0, description="number of questions")
    num_images: int = Field(ge=0, description="number of images; an image may have several questions")
    num_pairs: int = Field(0, ge=0, description="number of pairs: a question about two images, with different answers")
    families: list[str] = Field(default=[], description="topics of the questions, in order of appearance")

    @property
    def num_samples(self) -> int:
        """Number of samples of an epoch: each question is one."""
        return self.num_questions


class Metadata(Artifact):
    """Entries that captions are matched against. The id of an entry is its index, numbered over all languages."""

    num_entries: int = Field(ge=1, description="number of entries")
    sha256: str = Field(description="hash of the ordered entries and their languages")
    languages: list[str] = Field(default=[""], description="languages with entries; '': entries for every language")


class Matches(Artifact):
    """Matches between the texts of a pool and entries.

    It has the entry ids of each text, and the counts of each entry. Any t can be balanced from them.
    """

    pool: str = Field(description="address of the Pool")
    metadata: str = Field(description="address of the Metadata")
    num_texts: int = Field(ge=0, description="number of texts")
    num_matched: int = Field(ge=0, description="number of texts that match an entry")
    languages: list[str] = Field([], description="languages of the matched texts; empty: not recorded")


class VisionCheckpoint(Artifact):
    """A vision encoder in timm's layout (`config.json`, `model.safetensors`), with or without a head."""

    architecture: str = Field(description="timm name")
    image_size: int = Field(description="pixels along a side")
    width: int = Field(description="channels of the patch tokens")
    num_classes: int = Field(0, description="outputs of the head; 0: no head")


class DenseCheckpoint(Artifact):
    """A model with a dense head.

    Its encoder is a `VisionCheckpoint` in a subfolder, in timm's unchanged layout, so that it stays usable on its own.
    The files of the head are next to that folder. A model of another library (`eva.import_dense`) has no such folder.
    """

    encoder: str = Field("encoder", description="folder of the VisionCheckpoint, in this artifact; empty: none")
    tasks: list[Literal["boxes", "masks", "semantic", "panoptic"]] = Field(description="what the model predicts")
    class_names: list[str] = Field(description="class names in the order of the labels")
    image_size: int = Field(description="pixels along a side of the input")
    predictor: str = Field(description="function (checkpoint, device) that loads it: 'package.module:function'")


class VideoClassifier(Artifact):
    """A classifier of videos.

    It is a `VisionCheckpoint` in a subfolder, in timm's layout, and the video weights. The encoder classifies single
    frames, and can be used alone. `video.safetensors` has the position embeddings of the frames and all other weights
    that the video model adds.
    """

    encoder: str = Field("encoder", description="folder of the VisionCheckpoint, in this artifact")
    class_names: list[str] = Field(description="class names in the order of the labels")
    image_size: int = Field(description="pixels along a side of a frame")
    num_frames: int = Field(ge=1, description="frames of a clip")
    sampling: Literal["segments", "dense"] = Field(description="how clips are taken from a video")
    stride: int = Field(ge=1, description="distance between the frames of dense clips")
    model: dict[str, Any] = Field(description="settings of the video model")
    predictor: str = Field(description="function (checkpoint, device) that loads it: 'package.module:function'")


class ClipCheckpoint(Artifact):
    """A CLIP model in open_clip's layout (`open_clip_config.json`, `open_clip_model.safetensors`)."""

    model: str = Field(description="open_clip name, or origin of the model")
    image_size: int = Field(description="pixels along a side")
    embed_dim: int = Field(description="dimension of the joint embedding")
    context_length: int = Field(description="maximum number of tokens in a text")


class TrainingState(Artifact):
    """A checkpoint of a training run, with weights, averages and optimizer state (`vfm.train.checkpoint`)."""

    step: int = Field(description="optimizer steps so far")


class GeneratorCheckpoint(Artifact):
    """A diffusion model in diffusers' layout."""

    sample_size: int = Field(description="side of the denoised sample, in pixels or latents")
    condition_width: int = Field(description="channels of the cross-attention context; 0 if it attends to none")
    prediction: Literal["epsilon", "v", "flow"] = Field(description="prediction target of the model")


class ExportedModel(Artifact):
    """A model in the layout of another library."""

    format: str = Field(description="format of `vfm export`")


class SampleCache(Artifact):
    """Tensors by (sample, crop), in the order of a dataset, such as features of a teacher, or latents."""

    data: str = Field(description="address of the dataset")
    producer: str = Field(description="origin of the tensors: address of a model, and its settings")
    num_samples: int = Field(ge=0, description="samples of the dataset, including those without tensors")
    num_crops: int = Field(ge=1, description="crops of each sample")
    shape: tuple[int, ...] = Field(description="shape of each tensor")
    dtype: Literal["int8", "fp16", "fp32"] = Field(description="stored type of the tensors")
    basis: str = Field("", description="file of the PCA that the tensors are coordinates of; empty: no PCA")
    samples_per_shard: int = Field(ge=1, description="samples per file")
    crop_scale: tuple[float, float] | None = Field(
        description="fraction of the area that a random crop keeps, (min, max); null: no random crop"
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="aspect ratio of a random crop, (min, max)")
    flip: float = Field(description="probability of a left-right flip")
    seed: int = Field(description="seed of the crops, together with the numbers of crop and sample")
    bad_samples: dict[str, int] = Field(default={}, description="number of samples without tensors, by reason")


class Metric(Config):
    """One measured value with its uncertainty."""

    name: str = Field(description="name of the metric, such as acc1")
    value: float = Field(description="value in its unit")
    unit: str = Field(default="share", description="share (0 to 1), or the unit of the value")
    n: int = Field(description="number of independent items behind the value")
    low: float = Field(description="lower end of the 95 % interval")
    high: float = Field(description="upper end of the 95 % interval")
    model: str = Field(default="", description="name of the evaluated model's stage")
    chance: float | None = Field(default=None, description="expected value of a random guess")


class Comparison(Config):
    """Difference between a model and the first one, on the same items or over the same seeds."""

    metric: str = Field(description="name of the compared metric")
    model: str = Field(description="name of the compared model")
    baseline: str = Field(description="name of the first model")
    difference: float = Field(description="the model's value minus the baseline's")
    low: float = Field(description="lower end of the 95 % interval of the difference")
    high: float = Field(description="upper end of the 95 % interval")
    p_value: float = Field(description="two-sided p-value")
    test: str = Field(
        description="name of the test: exact McNemar, sign flips, paired resamples, paired t over seeds, ..."
    )
    counts_as: float = Field(
        1.0,
        gt=0,
        le=1,
        description="as how many tests it counts in corrections; less than 1 if its metric moves with further ones on"
        " the same resamples (max-t)",
    )


class Report(Artifact):
    """Result of an evaluation, with metrics, n, intervals and paired tests. Predictions are in parquet files."""

    task: str = Field(description="name of the task in results, such as zeroshot_classification")
    dataset: str = Field(description="name of the dataset's stage")
    metrics: list[Metric] = Field(description="each metric of each model")
    comparisons: list[Comparison] = Field([], description="comparisons of each later model with the first")
    main: list[str] = Field([], description="metrics that decide between models; empty: the first one")

    @property
    def main_metrics(self) -> list[str]:
        """Names of the metrics that decide between models."""
        return self.main or [metric.name for metric in self.metrics[:1]]
