"""The inputs of masked pre-training: an image at the student's and at the teacher's size, or stored targets."""

# B batch, N patches, S side of the student's image, S' of the teacher's, T target width

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vfm.data import CachedTensors, Sample, decode_image
from vfm.models import Preprocess
from vfm.train import ImageTransform, SampleDraw, to_tensor

__all__ = ["EvaInputs", "EvaViews", "MakeViews", "MakeWithTargets", "crop_transform"]


@dataclass(frozen=True)
class EvaInputs:
    """A batch of masked images."""

    images: Tensor  # (B, 3, S, S) uint8
    bool_mask: Tensor  # (B, N), True = masked
    teacher_images: Tensor | None = None  # (B, 3, S', S') uint8, if the teacher's size differs
    targets: Tensor | None = None  # (B, N, T) or coded, if there is no teacher


@dataclass(frozen=True)
class EvaViews:
    """A sample, or a batch of samples, before its mask is drawn."""

    images: Tensor  # (B, 3, S, S) uint8
    mask_seed: Tensor  # (B,) int64
    teacher_images: Tensor | None = None
    targets: Tensor | None = None


def crop_transform(crop_scale: tuple[float, float] | None, flip: float, preprocess: Preprocess) -> ImageTransform:
    """Return random crops at a model's size and interpolation; their boxes are the same for all models."""
    return ImageTransform(preprocess.image_size, scale=crop_scale, flip=flip, interpolation=preprocess.interpolation)


@dataclass(frozen=True)
class MakeViews:
    """Makes the views of one sample.

    A teacher of another size gets the same part of the image: one box, cut out of the original and resized twice, as
    in EVA.

    transform: the student's crops.
    teacher: the teacher's crops; default: the student's.
    """

    transform: ImageTransform
    teacher: ImageTransform | None = None

    def __call__(self, sample: Sample, draw: SampleDraw) -> EvaViews:
        """Return the views of one sample; raises BadSample."""
        # One seed for crop and mask: they hash it in different ways.
        return self.view(sample, draw.seed, draw.seed)

    def view(self, sample: Sample, mask_seed: int, crop_seed: int) -> EvaViews:
        """Return the views of one sample, with its crop drawn from a seed of its own; raises BadSample."""
        image = decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)
        own, teacher = self.transform.apply(image, crop_seed), None
        if self.teacher and self.teacher != self.transform:
            teacher = to_tensor(self.teacher.apply(image, crop_seed))
        return EvaViews(to_tensor(own), torch.tensor(mask_seed), teacher)


@dataclass(frozen=True)
class MakeWithTargets:
    """Makes the views of one sample, cropped as one of the crops in a cache, and the crop's targets.

    Each epoch takes the next crop. The epoch is the one in which the step begins.
    """

    make: MakeViews
    tensors: CachedTensors
    global_batch_size: int

    def __call__(self, sample: Sample, draw: SampleDraw) -> EvaViews:
        """Return the views and targets of one sample; raises BadSample."""
        crop = self.tensors.crop_in(draw.step, self.global_batch_size)
        targets = torch.from_numpy(self.tensors[draw.index, crop]).flatten(0, 1)
        crop_seed = SampleDraw.of(self.tensors.cache.seed, crop, draw.index).seed
        return replace(self.make.view(sample, draw.seed, crop_seed), targets=targets)
