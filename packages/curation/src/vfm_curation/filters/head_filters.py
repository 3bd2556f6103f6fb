"""Configurations of filters by the user's own heads and clusters, on image embeddings of a CLIP model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import ClipCheckpoint, ImageDataset, Preflight, Ref
from vfm_curation.filters.head_layers import layers_of
from vfm_curation.filters.model_filters import HeadScore
from vfm_curation.filters.stages import Filter, Measure, Unit


class MlpScore(HeadScore):
    """Keep images by a small network on their embeddings. The embeddings have unit length.

    LAION's improved aesthetic predictor is such a head, without activations between its layers. Its NSFW detectors have
    ReLU between the layers and a sigmoid at the end.
    """

    type: Literal["mlp_score"] = Field("mlp_score", description="a score by a network")
    head: str = Field(
        min_length=1,
        description="safetensors file with `NAME.weight`, (out, in), and `NAME.bias` of each layer, in the order of the"
        " numbers in their names, the last with one output",
    )
    activation: Literal["none", "relu", "gelu"] = Field("none", description="activation between the layers")
    sigmoid: bool = Field(False, description="apply a sigmoid at the end, as for a probability")

    work: ClassVar[str] = "vfm_curation.filters.mlp_head:mlp_score_passes"

    def head_width(self) -> int:
        """Read the width of the embeddings that the network takes."""
        return layers_of(Path(self.head))[0].width


class ImageClusters(Filter):
    """Keep images in listed clusters, or in clusters that contain an image of a reference set such as ImageNet.

    An image's cluster is the centroid with the largest cosine.

    Source: Gadre et al. 2023, DataComp (arXiv:2304.14108), image-based filtering.
    """

    type: Literal["image_clusters"] = Field("image_clusters", description="a cluster without an image of the set")
    clip: Ref[ClipCheckpoint] = Field(description="model of the centroids")
    centroids: str = Field(min_length=1, description="npy file, (clusters, width), such as DataComp's")
    near: list[Ref[ImageDataset]] | None = Field(None, min_length=1, description="keep the clusters of these images")
    clusters: str | None = Field(None, description="npy file with the numbers of the clusters to keep")

    unit: ClassVar[Unit] = "image"
    measures: ClassVar[tuple[Measure, ...]] = ("embeddings",)
    work: ClassVar[str] = "vfm_curation.filters.copies.image_clusters:cluster_passes"

    @model_validator(mode="after")
    def _one_choice(self) -> ImageClusters:
        if (self.near is None) == (self.clusters is None):
            raise ValueError("give exactly one of near and clusters")
        return self

    @property
    def model(self) -> Ref[ClipCheckpoint]:
        """Model of the centroids."""
        return self.clip

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the centroids and of the list of clusters."""
        return (self.centroids, *([self.clusters] if self.clusters else []))

    def errors(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """Yield a line for each missing file."""
        yield from (f"{file}: no such file" for file in self.files if not Path(file).is_file())
