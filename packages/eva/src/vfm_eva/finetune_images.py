"""From a labelled sample to a training step: a random crop, timm's RandAugment, and its label."""

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
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from torch import Tensor

from vfm.config import UserError
from vfm.data.images import FILTERS, Interpolation, decode_image
from vfm.data.sample import BadSample, Sample
from vfm.data.transforms import ImageTransform, to_tensor
from vfm.models.preprocess import Preprocess

_ONE_AT_A_TIME = RLock()  # the loader's thread augments while the training's thread mixes


@contextmanager
def global_draws(seed: int) -> Iterator[None]:
    """Inside, Python's and NumPy's global generators draw from this seed; afterwards they are as they were.

    timm's augmentations know no other generators. One thread at a time is let in.
    """
    with _ONE_AT_A_TIME:
        before = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@dataclass(frozen=True)
class MakeLabeled:
    """Makes `images` (3, S, S) uint8 and `labels` of a sample; crop, flip and augmentation are drawn from its seed.

    transform: the random crop.
    mean: grey that fills what an augmentation leaves empty, 0 to 255.
    rand_augment: in timm's words; None augments nothing.
    """

    transform: ImageTransform
    mean: tuple[int, int, int]
    rand_augment: str | None = None

    @classmethod
    def of(
        cls, preprocess: Preprocess, crop_scale: tuple[float, float], flip: float, rand_augment: str | None
    ) -> MakeLabeled:
        """As a model wants its images."""
        size, interpolation = preprocess.image_size, preprocess.interpolation
        transform = ImageTransform(size, scale=crop_scale, flip=flip, interpolation=interpolation)
        red, green, blue = (min(255, round(255 * value)) for value in preprocess.mean)
        return cls(transform, (red, green, blue), rand_augment)

    def __call__(self, sample: Sample, seed: int) -> dict[str, Tensor]:
        """The tensors of one sample; raises BadSample."""
        if sample.label is None:
            raise BadSample("missing_label", sample.key)
        image = decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)
        image = self.transform.apply(image, seed)
        if self.rand_augment:
            augment = _augmentation(self.rand_augment, image.width, self.mean, self.transform.interpolation)
            with global_draws(int(seed)):
                image = augment(image)
        return {"images": to_tensor(image), "labels": torch.tensor(sample.label)}


@lru_cache
def _augmentation(
    words: str, size: int, mean: tuple[int, int, int], interpolation: Interpolation
) -> Callable[[Image.Image], Image.Image]:
    """RandAugment as timm's own training sets it up."""
    settings = {"translate_const": int(size * 0.45), "img_mean": mean, "interpolation": FILTERS[interpolation]}
    augment: Any = rand_augment_transform(words, settings)
    for operation in augment.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    made: Callable[[Image.Image], Image.Image] = augment
    return made


def _posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """timm's, which at the largest magnitude asks for no bits at all: Pillow refuses that now, and it was black."""
    posterized: Image.Image = posterize(image, max(1, bits), **settings)
    return posterized


def check_rand_augment(words: str | None) -> None:
    """Refuses what is not in timm's words.

    Raises:
        UserError: timm does not understand it.
    """
    try:
        if words is not None:
            _augmentation(words, 32, (0, 0, 0), "bicubic")
    except (AssertionError, ValueError, KeyError, IndexError):
        raise UserError(
            f"rand_augment: {words!r} is none of timm's settings, such as rand-m9-mstd0.5-inc1 (m: magnitude, n: number"
            " of operations, mstd: spread of the magnitude, inc1: all grow with it)"
        ) from None
