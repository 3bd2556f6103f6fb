"""Stage `diva.latents`, which caches a VAE's latents, and the code that reads such caches in training."""

# C channels, h side of the latents

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vfm.data import (
    CACHE_FOLDER,
    CachedTensors,
    CacheWriter,
    ImageTransform,
    MakeCrops,
    SampleCrops,
    SampleDraw,
    fill_cache,
    open_dataset,
)
from vfm.plugin import Context, ImageDataset, Preflight, SampleCache, UserError
from vfm.train import prepare_device
from vfm_diva.generator.generator import Generator, load_generator
from vfm_diva.generator.space import Space, require_latents
from vfm_diva.generator.stages import DivaLatents


def check_cache_latents(config: DivaLatents, ctx: Preflight) -> None:
    """Check that the generator has a VAE that takes images of this size, if the generator exists.

    Raises:
        UserError: If it has no VAE, or the size does not fit.
    """
    checkpoint = ctx.artifact(config.generator)
    if checkpoint:
        generator = load_generator(checkpoint, weights=False)
        require_latents(generator.space)
        generator.noise_shape_at(config.image_size or generator.image_size)


def cache_latents(config: DivaLatents, ctx: Context) -> SampleCache:
    """Run `diva.latents`: write shard after shard. After a crash the next run resumes with the unfinished shard."""
    data = ctx.load(config.data)
    generator = load_generator(ctx.load(config.generator))
    space, device = require_latents(generator.space), prepare_device(config.runtime)
    producer = space.fingerprint()
    size = config.image_size or generator.image_size
    space.to(device)
    crops = config.augmentation
    transform = ImageTransform(size, "crop", scale=crops.crop_scale, ratio=crops.crop_ratio)
    writer = CacheWriter(
        ctx.work / CACHE_FOLDER,
        num_samples=data.num_samples,
        num_crops=config.num_crops,
        shape=generator.noise_shape_at(size),
        dtype=config.dtype,
        samples_per_shard=config.samples_per_shard,
    )

    def encode(batch: SampleCrops) -> Tensor:
        parts = torch.split(batch.images.flatten(0, 1), config.micro_batch_size)
        return torch.cat([space(part.to(device)).cpu() for part in parts])

    fill_cache(
        writer,
        ctx,
        open_dataset(data),
        MakeCrops(transform, config.num_crops, config.seed),
        encode,
        batch_size=max(1, config.micro_batch_size // config.num_crops),
        workers=config.runtime.num_workers,
        max_bad_fraction=config.max_bad_fraction,
    )
    return writer.publish(
        ctx.directory,
        data=data.reference(ctx.directory),
        producer=producer,
        crop_scale=crops.crop_scale,
        crop_ratio=crops.crop_ratio,
        flip=0.0,
        seed=config.seed,
    )


@dataclass(frozen=True)
class StoredLatents:
    """Reads the latents of each sample's crop, and the seed of that crop.

    Attributes:
        tensors: Tensors of a cache made by `diva.latents`.
        global_batch_size: Batch size of the training run. It determines the epoch of a step.
    """

    tensors: CachedTensors
    global_batch_size: int

    def __call__(self, draw: SampleDraw) -> tuple[int, Tensor]:
        """Look up the seed of the crop of the step's epoch, and its latents, (C, h, h).

        Raises:
            BadSample: If the sample was unusable when the latents were cached.
        """
        crop = self.tensors.crop_in(draw.step, self.global_batch_size)
        # The same seed as in `diva.latents`, so that CLIP sees the cached crop.
        crop_seed = SampleDraw.of(self.tensors.cache.seed, crop, draw.index).seed
        return crop_seed, torch.from_numpy(self.tensors[draw.index, crop])


def open_latents(
    cache: SampleCache, data: ImageDataset, generator: Generator, transform: ImageTransform, global_batch_size: int
) -> tuple[StoredLatents, ImageTransform]:
    """Open a cache of latents for a training run.

    Args:
        cache: Result of `diva.latents`.
        data: Images of the training.
        generator: Generator whose VAE made the latents.
        transform: The training's image transform.
        global_batch_size: Samples per step, over all processes.

    Returns:
        The latents, and the transform with the cache's crops.

    Raises:
        UserError: If the cache does not fit, as for `check_latents`.
    """
    check_latents(cache, data, generator.noise_shape_at(transform.size), generator.space)
    cropping = replace(transform, scale=cache.crop_scale, ratio=cache.crop_ratio)
    return StoredLatents(CachedTensors(cache), global_batch_size), cropping


def check_latents(
    cache: SampleCache,
    data: ImageDataset | None = None,
    shape: tuple[int, int, int] | None = None,
    space: Space | None = None,
) -> None:
    """Check that a cache fits a dataset, a shape and a VAE.

    Args:
        cache: Result of `diva.latents`.
        data: Images of the training. None is not checked.
        shape: Shape of a sample's latents, (C, h, h). None is not checked.
        space: Latent space of the generator. None is not checked.

    Raises:
        UserError: If something differs. The message names the first difference.
    """
    cached_data = cache.linked(cache.data).resolve() if data else None
    if data and cached_data != data.path.resolve():
        raise UserError(f"latents: expected latents of {data.path.resolve()}, got those of {cached_data}")
    if shape and cache.shape != shape:
        cached = " x ".join(map(str, cache.shape))
        expected = " x ".join(map(str, shape))
        raise UserError(f"latents: expected {expected} for this generator and image_size, got {cached}")
    producer = require_latents(space).fingerprint() if space else None
    if space and cache.producer != producer:
        raise UserError(
            f"latents: expected those of the generator's VAE ({producer}), got another's ({cache.producer})"
        )
