"""The stage `diva.latents`: a VAE's latents of every crop, computed once and kept for any number of trainings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vfm.artifacts import GeneratorCheckpoint, ImageDataset, SampleCache
from vfm.stage import Context, Preflight, Ref, Seed, Stage
from vfm_diva.crops import Crops


class DivaLatents(Stage, Crops):
    """Keeps a VAE's means of a data set's pictures, so that later epochs, seeds and models need not run it.

    Latents of one VAE suit every generator that has it. A training with `latents` sees the crops that were kept.
    """

    kind: Literal["diva.latents"] = "diva.latents"
    data: Ref[ImageDataset] = Field(description="the pictures that will be trained on")
    generator: Ref[GeneratorCheckpoint] = Field(description="whose VAE it is (models.generator, or a diva.prior)")
    image_size: int | None = Field(
        None, ge=8, description="side of the pictures, in pixels; default: the generator's own"
    )
    num_crops: int = Field(1, ge=1, description="crops of each picture; epochs take them in turn")
    dtype: Literal["fp16", "fp32"] = Field("fp16", description="what the latents are stored in")
    micro_batch_size: int = Field(16, ge=1, description="crops a pass of the VAE")
    samples_per_shard: int | None = Field(
        None, ge=1, description="samples of a file, the most that a crash costs; default: about 128 MiB"
    )
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more samples than this share are bad")
    seed: Seed = Field(0, description="draws the crops")

    def preflight(self, ctx: Preflight) -> None:
        """The generator has a VAE that takes pictures of this size, where it is there already."""
        if checkpoint := ctx.artifact(self.generator):
            from vfm_diva.generator import load_generator
            from vfm_diva.space import as_latents

            generator = load_generator(checkpoint, weights=False)
            as_latents(generator.space)
            generator.noise_shape_at(self.image_size or generator.image_size)

    def run(self, ctx: Context) -> SampleCache:
        """Writes shard after shard; after a crash the next run goes on with the shard that was not finished."""
        import torch

        from vfm.data.cache_filling import MakeCrops, fill
        from vfm.data.loader import Batch
        from vfm.data.sample_cache import FOLDER, CacheWriter
        from vfm.data.source import open_dataset
        from vfm.data.transforms import ImageTransform
        from vfm.train import resolve_device
        from vfm_diva.generator import load_generator
        from vfm_diva.space import as_latents

        data, generator = ctx.load(self.data), load_generator(ctx.load(self.generator))
        space, device = as_latents(generator.space), resolve_device(self.runtime)
        key, size = space.key(), self.image_size or generator.image_size
        space.to(device)
        transform = ImageTransform(size, "crop", scale=self.crop_scale, ratio=self.crop_ratio)
        writer = CacheWriter(
            ctx.work / FOLDER,
            num_samples=data.num_samples,
            num_crops=self.num_crops,
            shape=generator.noise_shape_at(size),
            dtype=self.dtype,
            samples_per_shard=self.samples_per_shard,
        )

        def ask(batch: Batch) -> torch.Tensor:
            crops = batch["images"].flatten(0, 1).split(self.micro_batch_size)
            return torch.cat([space(part.to(device)).cpu() for part in crops])

        fill(
            writer,
            ctx,
            open_dataset(data),
            MakeCrops(transform, self.num_crops, self.seed),
            ask,
            batch_size=max(1, self.micro_batch_size // self.num_crops),
            workers=self.runtime.workers,
            max_bad_fraction=self.max_bad_fraction,
        )
        return writer.publish(
            ctx.directory,
            data=data.reference(ctx.directory),
            producer=key,
            crop_scale=self.crop_scale,
            crop_ratio=self.crop_ratio,
            flip=0.0,
            seed=self.seed,
        )
