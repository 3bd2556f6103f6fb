"""Latents that were kept: the VAE's means of crops, read in place of running it on pictures."""

# C channels, h side of the latents

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vfm.artifacts import ImageDataset, SampleCache
from vfm.config import UserError
from vfm.data.loader import SampleSeed, sample_seed
from vfm.data.sample_cache import CachedTensors
from vfm.data.transforms import ImageTransform
from vfm_diva.generator import Generator
from vfm_diva.space import Space, as_latents


@dataclass(frozen=True)
class StoredLatents:
    """The latents of the epoch's crop of each sample, and the seed that drew that crop.

    tensors: of a cache that `diva.latents` made.
    global_batch_size: of the training; with its step it tells the epoch.
    """

    tensors: CachedTensors
    global_batch_size: int

    def __call__(self, seed: SampleSeed) -> tuple[SampleSeed, Tensor]:
        """The crop's seed, and latents (C, h, h), of a sample in a step; raises BadSample."""
        crop = self.tensors.crop_in(seed.step, self.global_batch_size)
        crop_seed = sample_seed(self.tensors.cache.seed, crop, seed.index)
        return crop_seed, torch.from_numpy(self.tensors[seed.index, crop])


def open_latents(
    cache: SampleCache, data: ImageDataset, generator: Generator, transform: ImageTransform, global_batch_size: int
) -> tuple[StoredLatents, ImageTransform]:
    """A cache for a training, and the transform with its crops.

    Raises:
        UserError: as `check_latents`.
    """
    check_latents(cache, data, generator.noise_shape_at(transform.size), generator.space)
    kept = replace(transform, scale=cache.crop_scale, ratio=cache.crop_ratio)
    return StoredLatents(CachedTensors(cache), global_batch_size), kept


def check_latents(
    cache: SampleCache,
    data: ImageDataset | None = None,
    shape: tuple[int, int, int] | None = None,
    space: Space | None = None,
) -> None:
    """Refuses a cache that is not of this data, this size, or this VAE; what is not given is not compared.

    Raises:
        UserError: the first thing that differs.
    """
    if data and (made_from := cache.linked(cache.data).resolve()) != data.path.resolve():
        raise UserError(f"the latents were made from {made_from}, data is {data.path.resolve()}; it must be the same")
    if shape and cache.shape != shape:
        found, wanted = (" x ".join(map(str, each)) for each in (cache.shape, shape))
        raise UserError(f"the latents are {found}, the generator takes {wanted} at this image_size")
    if space and cache.producer != (key := as_latents(space).key()):
        raise UserError(f"the latents are of another VAE ({cache.producer}) than the generator's ({key})")
