"""Random crops with timm's RandAugment and their labels, for fine-tuning."""

# B batch, S side of the image

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from vfm.data import (
    FILTERS,
    BadSample,
    ImageTransform,
    Interpolation,
    Sample,
    SampleDraw,
    decode_image,
    to_tensor,
    weight_of,
)
from vfm.models import Preprocess
from vfm.plugin import UserError

__all__ = ["LabeledImages", "MakeLabeled", "check_rand_augment", "erase", "seeded_global_generators"]

_GENERATORS_LOCK = RLock()  # the loader's thread augments while the training thread mixes


@dataclass(frozen=True)
class LabeledImages:
    """An image with its label, or a batch."""

    images: Tensor  # (B, 3, S, S) uint8
    labels: Tensor  # (B,), or (B, C) bool
    erasing_seeds: Tensor | None = None  # (B,) int64, for random erasing, which needs normalised images; None: none
    weights: Tensor | None = None  # (B,) float32, weights of the images in the loss; None: all are equal


@contextmanager
def seeded_global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and NumPy within the context, and restore their states afterwards.

    timm's augmentations draw only from these two. A lock lets one thread at a time enter the context.
    """
    with _GENERATORS_LOCK:
        before = random.getstate(), np.random.get_state()
        # timm's augmentations draw from the global generators, and take none as an argument.
        random.seed(seed)
        # NumPy accepts 32 bits only.
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@dataclass(frozen=True)
class MakeLabeled:
    """Creates the inputs of a sample, with crop, flip and augmentation drawn from the draw's seed.

    Attributes:
        transform: The random crop.
        mean: Colour, 0 to 255, that fills the areas an augmentation leaves empty.
        rand_augment: RandAugment in timm's notation. None: no augmentation.
        labels: Labels of all images in the dataset, (N, C), if an image can have several. None: a sample has one class.
        weight: Column with the weight of an image in the loss. None: all are equal.
    """

    transform: ImageTransform
    mean: tuple[int, int, int]
    rand_augment: str | None = None
    labels: NDArray[np.bool_] | None = None
    weight: str | None = None

    @classmethod
    def of(
        cls, preprocess: Preprocess, crop_scale: tuple[float, float], flip: float, rand_augment: str | None
    ) -> MakeLabeled:
        """Create the loader for a model's image size, interpolation and mean.

        Args:
            preprocess: The model's preprocessing.
            crop_scale: Smallest and largest area of a crop.
            flip: Probability of a horizontal flip.
            rand_augment: timm's description of RandAugment.
        """
        size = preprocess.image_size
        interpolation = preprocess.interpolation
        transform = ImageTransform(size, scale=crop_scale, flip=flip, interpolation=interpolation)
        red, green, blue = (min(255, round(255 * value)) for value in preprocess.mean)
        return cls(transform, (red, green, blue), rand_augment)

    def __call__(self, sample: Sample, draw: SampleDraw) -> LabeledImages:
        """Create the inputs of a sample. Raises BadSample."""
        if sample.label is None and self.labels is None:
            raise BadSample("missing_label", sample.key)
        image = decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)
        image = self.transform.apply(image, draw.seed)
        if self.rand_augment:
            augment = _rand_augment(self.rand_augment, image.width, self.mean, self.transform.interpolation)
            with seeded_global_generators(draw.seed):
                image = augment(image)
        if self.labels is None:
            label = torch.tensor(sample.label)
        else:
            label = torch.from_numpy(self.labels[draw.index])
        # Hash the seed again, because RandAugment has already drawn from it.
        seed = SampleDraw.of(draw.seed, draw.step, draw.index).seed
        weight = torch.tensor(weight_of(sample, self.weight)) if self.weight else None
        return LabeledImages(to_tensor(image), label, torch.tensor(seed), weight)


def erase(pixels: Tensor, seeds: Tensor, erasing: RandomErasing) -> None:
    """Erase a rectangle in some normalised images, in place. The draws depend only on the seed of each image.

    Args:
        pixels: (B, 3, S, S).
        seeds: (B,).
        erasing: timm's erasing with `device="cpu"`. The CPU's generator draws the noise, since CUDA's serves the model.
    """
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(pixels, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            with seeded_global_generators(seed):
                erasing(image)


@lru_cache
def _rand_augment(
    notation: str, size: int, mean: tuple[int, int, int], interpolation: Interpolation
) -> Callable[[Image.Image], Image.Image]:
    """Build RandAugment with the settings of timm's training script."""
    # timm's script translates by at most 45 % of the side.
    settings = {"translate_const": int(size * 0.45), "img_mean": mean, "interpolation": FILTERS[interpolation]}
    transform: Any = rand_augment_transform(notation, settings)
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    augment: Callable[[Image.Image], Image.Image] = transform
    return augment


def _posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """Posterize with at least one bit.

    timm's largest magnitude is zero bits (black). Pillow rejects it.
    """
    posterized: Image.Image = posterize(image, max(1, bits), **settings)
    return posterized


def check_rand_augment(notation: str | None) -> None:
    """Check that timm can parse a RandAugment setting.

    Raises:
        UserError: If it cannot.
    """
    try:
        if notation is not None:
            _rand_augment(notation, 32, (0, 0, 0), "bicubic")
    except (AssertionError, ValueError, KeyError, IndexError):
        raise UserError(
            f"augmentation.rand_augment: expected timm's notation, such as rand-m9-mstd0.5-inc1, got {notation!r}"
            " (m: magnitude, n: number of operations, mstd: standard deviation of the magnitude, inc1: all operations"
            " are stronger with larger magnitudes)"
        ) from None
