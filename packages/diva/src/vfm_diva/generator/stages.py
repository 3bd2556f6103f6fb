"""Configuration of `diva.latents`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from vfm.plugin import (
    INCIDENTAL,
    Artifact,
    Config,
    CropScale,
    GeneratorCheckpoint,
    ImageDataset,
    Ref,
    SampleCache,
    Seed,
    Stage,
)


class CropSettings(Config):
    """Random crop of an image. CLIP and the generator both see it."""

    crop_scale: CropScale | None = Field(
        (0.9, 1.0), description="share of the area that a random crop keeps; null: no random crop, as in evaluation"
    )
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.95, 1.05), description="smallest and largest aspect ratio of a random crop"
    )

    @model_validator(mode="after")
    def _ascending(self) -> CropSettings:
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: expected the smaller ratio first, got {list(self.crop_ratio)}")
        return self


class DivaLatents(Stage):
    """Compute a VAE's latents of a dataset once, for later epochs, seeds and models.

    Latents suit every generator with the same VAE. Training with `latents` sees the crops that were cached.
    """

    kind: Literal["diva.latents"] = "diva.latents"
    data: Ref[ImageDataset] = Field(description="images that will be trained on")
    generator: Ref[GeneratorCheckpoint] = Field(description="model with the VAE (models.generator, or a diva.prior)")
    image_size: int | None = Field(
        None, ge=8, description="side of the generator's images, in pixels; default: the generator's own"
    )
    augmentation: CropSettings = Field(CropSettings(), description="the cached crops")
    num_crops: int = Field(1, ge=1, description="crops of each image; epochs cycle through them")
    dtype: Literal["fp16", "fp32"] = Field("fp16", description="stored type of the latents")
    micro_batch_size: Annotated[int, INCIDENTAL] = Field(16, ge=1, description="crops per forward pass of the VAE")
    samples_per_shard: int | None = Field(
        None, ge=1, description="samples per file, at most those are lost in a crash; default: about 128 MiB"
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="tolerated fraction of samples that cannot be read; above it the stage stops"
    )
    seed: Seed = Field(0, description="seed of the crops")

    makes: ClassVar[type[Artifact]] = SampleCache
    work: ClassVar[str] = "vfm_diva.generator.latents:cache_latents"
    on_device: ClassVar[bool] = True
    checks: ClassVar[str] = "vfm_diva.generator.latents:check_cache_latents"
