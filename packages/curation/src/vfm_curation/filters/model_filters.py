"""Configurations of the filters with a CLIP model, and of the filter that compares with evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import ClipCheckpoint, ImageDataset, Preflight, Ref, Seed, UserError
from vfm_curation.filters.linear_head import head_width
from vfm_curation.filters.stages import MAX_DISTANCE, THOROUGH, VARIANTS, Filter, Measure, Unit, copy_columns

CUTS = ("min_score", "max_score", "top_fraction", "bottom_fraction")
Fraction = Annotated[float, Field(gt=0, lt=1)]
IMAGES_PER_CLUSTER = 4096  # pairs within a cluster are compared in memory
MAX_CLUSTERS = 4096  # k-means holds a sample of each in memory


class ScoreFilter(Filter):
    """Filter by one number for each unit, with exactly one rule for the cut. Scores equal to the cut pass."""

    min_score: float | None = Field(None, description="smallest score that passes")
    max_score: float | None = Field(None, description="largest score that passes")
    top_fraction: Fraction | None = Field(None, description="fraction of the remaining units to keep, highest scores")
    bottom_fraction: Fraction | None = Field(None, description="fraction of the remaining units to keep, lowest scores")

    @model_validator(mode="after")
    def _one_cut(self) -> ScoreFilter:
        if sum(getattr(self, name) is not None for name in CUTS) != 1:
            raise ValueError(f"give exactly one of {', '.join(CUTS)}")
        return self


class SemanticDuplicates(Filter):
    """Drop an image whose cosine with an image of a smaller uid in its cluster is at least `min_cosine`.

    The other image need not be kept itself. Pairs in different clusters are not compared, so a few duplicates remain if
    there are several clusters. Every dropped image has a near one of smaller uid. A single cluster finds all pairs. The
    clusters come from k-means on a sample drawn by uid and seed, independent of the order of shards and samples.

    Source: Abbas et al. 2023, SemDeDup (arXiv:2303.09540), whose epsilon is 1 - min_cosine. It keeps by distance to the
    centroid, this filter by uid.
    """

    type: Literal["semantic_duplicates"] = Field("semantic_duplicates", description="an image with the same content")
    clip: Ref[ClipCheckpoint] = Field(description="model whose image embeddings are compared")
    min_cosine: float = Field(
        gt=0, le=1, description="smallest cosine of duplicates, which depends on the model: try 0.95"
    )
    clusters: int | None = Field(
        None,
        ge=1,
        le=1 << 16,
        description=f"number of clusters, by default one for each {IMAGES_PER_CLUSTER} images, at most {MAX_CLUSTERS}",
    )
    seed: Seed = Field(0, description="seed of the sample that k-means learns from and of its first centroids")

    unit: ClassVar[Unit] = "image"
    measures: ClassVar[tuple[Measure, ...]] = ("embeddings",)
    work: ClassVar[str] = "vfm_curation.filters.copies.semantic:distinct_images"

    @property
    def model(self) -> Ref[ClipCheckpoint]:
        """Model whose embeddings are compared."""
        return self.clip


class ClipScore(ScoreFilter):
    """Keep texts by their cosine with the image. Cosines depend on the model, fractions are comparable across models.

    LAION-5B kept cosines of at least 0.28 (English, OpenAI's ViT-B/32), LAION-400M 0.3. DataComp's best single filter
    is the top 0.3 by OpenAI's ViT-L/14.

    Sources: Schuhmann et al. 2022, LAION-5B (arXiv:2210.08402), and Gadre et al. 2023, DataComp (arXiv:2304.14108).
    """

    type: Literal["clip_score"] = Field("clip_score", description="a text that does not fit its image")
    clip: Ref[ClipCheckpoint] = Field(description="model that scores")

    measures: ClassVar[tuple[Measure, ...]] = ("embeddings", "scores")
    work: ClassVar[str] = "vfm_curation.filters.scores:clip_score_passes"

    @property
    def model(self) -> Ref[ClipCheckpoint]:
        """Model that computes the scores."""
        return self.clip

    def errors(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """Yield a line if no cosine reaches the bound."""
        bound = self.min_score if self.min_score is not None else self.max_score
        if bound is not None and not -1 <= bound <= 1:
            yield f"expected a cosine between -1 and 1, got {bound:g}"


class HeadScore(ScoreFilter):
    """Filter by a head of the user on image embeddings of unit length. A subclass reads the width that it takes."""

    clip: Ref[ClipCheckpoint] = Field(description="model whose image embeddings the head takes")
    head: str = Field(min_length=1, description="safetensors file of the head")
    label: str = Field(
        "score",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="name of the score, such as aesthetic: the reason code is low_LABEL or high_LABEL",
    )

    unit: ClassVar[Unit] = "image"
    measures: ClassVar[tuple[Measure, ...]] = ("embeddings",)

    @property
    def reason(self) -> str:
        """Reason code with the side of the cut on which the score is."""
        keeps_high = self.min_score is not None or self.top_fraction is not None
        return f"{'low' if keeps_high else 'high'}_{self.label}"

    @property
    def model(self) -> Ref[ClipCheckpoint]:
        """Model whose embeddings the head takes."""
        return self.clip

    @property
    def files(self) -> tuple[str, ...]:
        """File of the head."""
        return (self.head,)

    def head_width(self) -> int:
        """Read the width of the embeddings that the head takes.

        Raises:
            UserError: If the file cannot be read, or has no such head.
        """
        raise NotImplementedError

    def errors(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """Yield a line if the head cannot be read, or does not fit the model."""
        try:
            width = self.head_width()
        except UserError as error:
            yield str(error)
            return
        clip = ctx.artifact(self.clip)
        if clip and clip.embed_dim != width:
            yield f"{self.head}: takes embeddings of width {width}; '{self.clip}' has {clip.embed_dim}"


class LinearScore(HeadScore):
    """Keep images by weight . embedding + bias, where embeddings have unit length.

    LAION's aesthetic predictors are such heads on OpenAI's encoders, with scores from 1 to 10. For a head that ends in
    a sigmoid, give the bound as a logit.
    """

    type: Literal["linear_score"] = Field("linear_score", description="a score by a linear head")
    head: str = Field(min_length=1, description="safetensors file with `weight`, (D,) or (1, D), and perhaps `bias`")

    work: ClassVar[str] = "vfm_curation.filters.scores:linear_score_passes"

    def head_width(self) -> int:
        """Read the width of the embeddings that the head takes."""
        return head_width(Path(self.head))


class Decontaminate(Filter):
    """Drop images near to an image of the reference sets.

    Images are compared by perceptual hash, and by cosine if `clip` is given. The hash of an image, or of a variant
    (mirrored, turned by 90 degrees, or cut), is near to the other image's hash. With `thorough: true` local features
    are compared too, whatever part of the one image is in the other, and variants only of images with fewer than 32
    points. Memory holds about 2 kB for each image of the sets, and its embedding if `clip` is given.
    """

    type: Literal["decontaminate"] = Field("decontaminate", description="an image near to one of an evaluation set")
    against: list[Ref[ImageDataset]] = Field(min_length=1, description="evaluation sets")
    max_distance: int = MAX_DISTANCE
    variants: bool = VARIANTS
    thorough: bool = THOROUGH
    clip: Ref[ClipCheckpoint] | None = Field(None, description="model whose image embeddings are compared too")
    min_cosine: float | None = Field(None, gt=0, le=1, description="with clip: smallest cosine of near images")

    unit: ClassVar[Unit] = "image"
    work: ClassVar[str] = "vfm_curation.filters.copies.decontaminate:clean_images"

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Columns of the hashes and the points."""
        return copy_columns(variants=self.variants, thorough=self.thorough)

    @property
    def package(self) -> tuple[str, str] | None:
        """Module with the local features, or the one of the model, and its extra."""
        if self.thorough and not find_spec("cv2"):
            return ("cv2", "copies")
        return super().package

    @model_validator(mode="after")
    def _both_or_none(self) -> Decontaminate:
        if (self.clip is None) != (self.min_cosine is None):
            raise ValueError("clip and min_cosine belong together: give both or none")
        return self

    @property
    def measures(self) -> tuple[Measure, ...]:  # type: ignore[override]
        """Measurements to make. They are images for their hashes, and embeddings if a model is given."""
        if self.clip:
            return ("images", "embeddings")
        return ("images",)

    @property
    def model(self) -> Ref[ClipCheckpoint] | None:
        """Model whose embeddings are compared."""
        return self.clip

    def errors(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """Yield a line if the pool would be compared with itself."""
        if pool in self.against:
            yield f"'{pool}' compared with itself leaves nothing"
