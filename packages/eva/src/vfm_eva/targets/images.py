"""The inputs of masked pre-training: an image at the student's and at the teacher's size, or stored targets."""

# B batch, N patches, S side of the student's image, S' of the teacher's, T target width

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vfm.data import CachedTensors, ImageTransform, Sample, SampleDraw, decode_image, to_tensor
from vfm.models import Preprocess

__all__ = ["EvaInputs", "EvaViews", "MakeViews", "MakeWithTargets", "TeacherInputs", "crop_transform"]


@dataclass(frozen=True)
class TeacherInputs:
    """What a further teacher has of a batch: as `teacher_images` and `targets` of `EvaInputs`."""

    teacher_images: Tensor | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class EvaInputs:
    """A batch of masked images."""

    images: Tensor  # (B, 3, S, S) uint8
    bool_mask: Tensor  # (B, N), True = masked
    teacher_images: Tensor | None = None  # (B, 3, S', S') uint8, if the teacher's size differs
    targets: Tensor | None = None  # (B, N, T) or coded, if there is no teacher
    others: tuple[TeacherInputs, ...] = ()  # of the teachers after the first

    def of_teacher(self, number: int) -> EvaInputs:
        """Return the inputs for one of the teachers, from 0, as those of a training with this teacher alone."""
        if number == 0:
            return self
        own = self.others[number - 1]
        return EvaInputs(self.images, self.bool_mask, own.teacher_images, own.targets)


@dataclass(frozen=True)
class EvaViews:
    """A sample, or a batch of samples, before its mask is drawn."""

    images: Tensor  # (B, 3, S, S) uint8
    mask_seed: Tensor  # (B,) int64
    teacher_images: Tensor | None = None
    targets: Tensor | None = None
    others: tuple[TeacherInputs, ...] = ()


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
    others: those of further teachers.
    """

    transform: ImageTransform
    teacher: ImageTransform | None = None
    others: tuple[ImageTransform, ...] = ()

    def __call__(self, sample: Sample, draw: SampleDraw) -> EvaViews:
        """Return the views of one sample; raises BadSample."""
        # One seed for crop and mask: they hash it in different ways.
        return self.view(sample, draw.seed, draw.seed)

    def view(self, sample: Sample, mask_seed: int, crop_seed: int) -> EvaViews:
        """Return the views of one sample, with its crop drawn from a seed of its own; raises BadSample."""
        image = decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)
        own = self.transform.apply(image, crop_seed)
        teacher, *others = (
            to_tensor(other.apply(image, crop_seed)) if other and other != self.transform else None
            for other in (self.teacher, *self.others)
        )
        return EvaViews(
            to_tensor(own), torch.tensor(mask_seed), teacher, others=tuple(TeacherInputs(seen) for seen in others)
        )


@dataclass(frozen=True)
class MakeWithTargets:
    """Makes the views of one sample, cropped as one of the crops in a cache, and the crop's targets.

    Each epoch takes the next crop. The epoch is the one in which the step begins.

    others: stored features of further teachers, of the same crops.
    """

    make: MakeViews
    tensors: CachedTensors
    global_batch_size: int
    others: tuple[CachedTensors, ...] = ()

    def __call__(self, sample: Sample, draw: SampleDraw) -> EvaViews:
        """Return the views and targets of one sample; raises BadSample."""
        crop = self.tensors.crop_in(draw.step, self.global_batch_size)
        targets, *others = (
            torch.from_numpy(tensors[draw.index, crop]).flatten(0, 1) for tensors in (self.tensors, *self.others)
        )
        crop_seed = SampleDraw.of(self.tensors.cache.seed, crop, draw.index).seed
        view = self.make.view(sample, draw.seed, crop_seed)
        return replace(view, targets=targets, others=tuple(TeacherInputs(targets=stored) for stored in others))
