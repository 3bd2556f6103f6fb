"""Configuration of `eva.targets`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vfm.plugin import (
    INCIDENTAL,
    Artifact,
    ClipCheckpoint,
    ImageDataset,
    Ref,
    SampleCache,
    Seed,
    Stage,
    VisionCheckpoint,
)
from vfm_eva.targets.parts import Features, TargetAugmentation

Side = Annotated[int, Field(ge=1)]


class EvaTargets(Stage):
    """Compute a teacher's features of a dataset's images once, so that `eva.pretrain` does not run the teacher."""

    makes: ClassVar[type[Artifact]] = SampleCache
    work: ClassVar[str] = "vfm_eva.targets.targets:compute_targets"
    on_device: ClassVar[bool] = True
    checks: ClassVar[str] = "vfm_eva.targets.targets:check_eva_targets"

    kind: Literal["eva.targets"] = "eva.targets"
    data: Ref[ImageDataset] = Field(description="images to train on later")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="encoder whose features are the target")
    target: Features = Field(Features(), description="which of the teacher's features")
    grid: tuple[Side, Side] = Field(description="rows and columns of the student's patches")
    num_crops: int = Field(1, ge=1, description="crops per image; epochs take them in turn")
    augmentation: TargetAugmentation = Field(TargetAugmentation(), description="random crops and flips")
    dtype: Literal["int8", "fp16", "fp32"] = Field("fp16", description="stored precision of the features")
    components: int | None = Field(
        None, ge=1, description="store this many principal components; default: all channels"
    )
    pca_images: int = Field(512, ge=1, description="number of images, drawn by the seed, to fit the PCA on")
    precision: Literal["fp32", "amp_bf16"] = Field("fp32", description="precision of the teacher's forward pass")
    micro_batch_size: Annotated[int, INCIDENTAL] = Field(64, ge=1, description="crops per forward pass")
    samples_per_shard: int | None = Field(
        None, ge=1, description="samples per file, and the most that a crash can lose; default: about 128 MiB"
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="tolerated fraction of samples that cannot be read; above it the stage stops"
    )
    seed: Seed = Field(0, description="seed of the crops")

    moved: ClassVar[Mapping[str, str]] = {"crop_scale": "augmentation.crop_scale", "flip": "augmentation.flip"}
