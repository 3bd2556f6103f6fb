"""Images at the student's and the teacher's size, or with stored targets, for masked pre-training."""

# B batch, N patches, S side of the student's image, S' of the teacher's, T target width

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from vfm.data import BatchMake, CachedTensors, ImageTransform, Sample, SampleDraw, decode_image, to_tensor
from vfm.models import Preprocess

__all__ = ["EvaInputs", "EvaViews", "MakeSizes", "MakeViews", "MakeWithTargets", "TeacherInputs", "crop_transform"]


@dataclass(frozen=True)
class TeacherInputs:
    """Inputs for an additional teacher, with the meaning of `teacher_images` and `targets` in `EvaInputs`."""

    teacher_images: Tensor | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class EvaInputs:
    """A batch of masked images."""

    images: Tensor  # (B, 3, S, S) uint8
    bool_mask: Tensor  # (B, N), True = masked
    teacher_images: Tensor | None = None  # (B, 3, S', S') uint8, if the teacher's size differs
    targets: Tensor | None = None  # (B, N, T) or coded, if there is no teacher
    others: tuple[TeacherInputs, ...] = ()  # one for each teacher after the first

    def of_teacher(self, number: int) -> EvaInputs:
        """Select the inputs of teacher `number`, counted from 0, as if it were the only teacher."""
        if number == 0:
            return self
        other = self.others[number - 1]
        return EvaInputs(self.images, self.bool_mask, other.teacher_images, other.targets)


@dataclass(frozen=True)
class EvaViews:
    """A sample or a batch of samples before the masks are drawn."""

    images: Tensor  # (B, 3, S, S) uint8
    mask_seed: Tensor  # (B,) int64
    teacher_images: Tensor | None = None
    targets: Tensor | None = None
    others: tuple[TeacherInputs, ...] = ()


def crop_transform(crop_scale: tuple[float, float] | None, flip: float, preprocess: Preprocess) -> ImageTransform:
    """Build random crops with a model's size and interpolation.

    The crop boxes are the same for all models.

    Args:
        crop_scale: Smallest and largest area of a crop. None crops as in evaluation.
        flip: Probability of a horizontal flip.
        preprocess: The model's preprocessing.
    """
    return ImageTransform(preprocess.image_size, scale=crop_scale, flip=flip, interpolation=preprocess.interpolation)


@dataclass(frozen=True)
class MakeViews(BatchMake[Image.Image, EvaViews]):
    """Creates the views of a sample.

    A teacher with another image size sees the same part of the image: the box is cut from the original and resized
    twice, as in EVA.

    Attributes:
        transform: The student's crops.
        teacher: The teacher's crops. Default: the student's.
        others: The crops of additional teachers.
    """

    transform: ImageTransform
    teacher: ImageTransform | None = None
    others: tuple[ImageTransform, ...] = ()

    def read(self, sample: Sample) -> Image.Image:
        """Decode the image of a sample. Raises BadSample."""
        return decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)

    def use(self, image: Image.Image, draw: SampleDraw) -> EvaViews:
        """Create the views of an image."""
        # Crop and mask can share a seed because they hash it in different ways.
        return self.view(image, draw.seed, draw.seed)

    def view(self, image: Image.Image, mask_seed: int, crop_seed: int) -> EvaViews:
        """Create the views of an image.

        Args:
            image: The decoded image.
            mask_seed: Seed of the mask.
            crop_seed: Seed of the crop.
        """
        student_image = to_tensor(self.transform.apply(image, crop_seed))
        teacher_images: list[Tensor | None] = []
        for transform in (self.teacher, *self.others):
            if transform is None or transform == self.transform:
                teacher_images.append(None)  # the teacher takes the student's image
            else:
                teacher_images.append(to_tensor(transform.apply(image, crop_seed)))
        first, *others = teacher_images
        return EvaViews(student_image, torch.tensor(mask_seed), first, others=tuple(map(TeacherInputs, others)))


@dataclass(frozen=True)
class MakeSizes(BatchMake[Image.Image, EvaViews]):
    """Creates the views of a sample at one of several sizes in turn: all samples of a step have the same size.

    Attributes:
        sizes: Views by size.
    """

    sizes: tuple[MakeViews, ...]

    def read(self, sample: Sample) -> Image.Image:
        """Decode the image of a sample. Raises BadSample."""
        return self.sizes[0].read(sample)

    def use(self, image: Image.Image, draw: SampleDraw) -> EvaViews:
        """Create the views of an image at the size of its step."""
        return self.sizes[draw.step % len(self.sizes)].use(image, draw)


@dataclass(frozen=True)
class MakeWithTargets(BatchMake[Image.Image, EvaViews]):
    """Creates the views of a sample with the crop and the targets stored in a cache.

    Each epoch takes the next crop. A step belongs to the epoch in which it begins.

    Attributes:
        others: Stored features of additional teachers for the same crops.
    """

    make: MakeViews
    tensors: CachedTensors
    global_batch_size: int
    others: tuple[CachedTensors, ...] = ()

    def read(self, sample: Sample) -> Image.Image:
        """Decode the image of a sample. Raises BadSample."""
        return self.make.read(sample)

    def use(self, image: Image.Image, draw: SampleDraw) -> EvaViews:
        """Create the views and load the targets of a sample. Raises BadSample."""
        crop = self.tensors.crop_in(draw.step, self.global_batch_size)
        stored = []
        for tensors in (self.tensors, *self.others):
            stored.append(torch.from_numpy(tensors[draw.index, crop]).flatten(0, 1))  # (N, T)
        targets, *others = stored
        # The seed by which `eva.targets` drew the crop.
        crop_seed = SampleDraw.of(self.tensors.cache.seed, crop, draw.index).seed
        view = self.make.view(image, draw.seed, crop_seed)
        return replace(view, targets=targets, others=tuple(TeacherInputs(targets=other) for other in others))
