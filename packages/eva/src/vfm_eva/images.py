"""From a sample to what a masked step takes: its picture at the student's and the teacher's size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.artifacts import SampleCache
from vfm.data.images import decode_image
from vfm.data.loader import SampleSeed, sample_seed
from vfm.data.sample import Sample
from vfm.data.sample_cache import CachedTensors
from vfm.data.transforms import ImageTransform, to_tensor
from vfm.models.preprocess import Preprocess
from vfm_eva.targets import Crops


def crop_transform(crops: Crops | SampleCache, preprocess: Preprocess) -> ImageTransform:
    """The way to random crops at a model's size, resized as it wants them; their boxes are the same for all models."""
    size, interpolation = preprocess.image_size, preprocess.interpolation
    return ImageTransform(size, scale=crops.crop_scale, flip=crops.flip, interpolation=interpolation)


@dataclass(frozen=True)
class MakeViews:
    """Makes `images` (3, S, S) uint8 and `mask_seed` of a sample; its crop is drawn from that seed, and so is its mask.

    A teacher of another size gets the same part of the picture as `teacher_images` (3, S', S'): one box, cut out of the
    original and resized twice, as in EVA.

    transform: the student's way with a picture.
    teacher: the teacher's way with a picture, the same crops; default: the student's.
    """

    transform: ImageTransform
    teacher: ImageTransform | None = None

    def __call__(self, sample: Sample, seed: int, crop_seed: int | None = None) -> dict[str, Tensor]:
        """The tensors of one sample, its crop from a seed of its own where one is given; raises BadSample."""
        image = decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)
        crop_seed = seed if crop_seed is None else crop_seed
        # One seed for crop and mask: they hash it each in their own way.
        tensors = {"images": to_tensor(self.transform.apply(image, crop_seed)), "mask_seed": torch.tensor(int(seed))}
        if self.teacher and self.teacher != self.transform:
            tensors["teacher_images"] = to_tensor(self.teacher.apply(image, crop_seed))
        return tensors


@dataclass(frozen=True)
class MakeWithTargets:
    """Makes what `make` makes, of the epoch's crop among those in the cache, and the crop's `targets` (N, T).

    The epoch is the one in which the step begins.
    """

    make: MakeViews
    tensors: CachedTensors
    global_batch_size: int

    def __call__(self, sample: Sample, seed: SampleSeed) -> dict[str, Tensor]:
        """The tensors of one sample; raises BadSample."""
        cache = self.tensors.cache
        crop = self.tensors.crop_in(seed.step, self.global_batch_size)
        targets = torch.from_numpy(self.tensors[seed.index, crop]).flatten(0, 1)
        return {**self.make(sample, seed, sample_seed(cache.seed, crop, seed.index)), "targets": targets}
