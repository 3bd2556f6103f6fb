"""Artifacts with data: images, pairs, labels, videos, questions, and what curation makes. `vfm.data` reads the bulk."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field

from vfm.base import UserError, did_you_mean
from vfm.interfaces.artifact import Artifact


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
