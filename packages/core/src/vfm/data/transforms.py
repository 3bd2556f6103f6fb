"""From a sample's bytes to the tensor of a training step; random augmentation is drawn from the sample's own seed."""

# S side of the square image

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.data.images import MAX_PIXELS, Interpolation, ResizeMode, decode_image, random_box, resize


@dataclass(frozen=True)
class ImageTransform:
    """Turns bytes into uint8 (3, S, S): resized, or a random crop of the image if `scale` is given.

    Attributes:
        size: side of the square, in pixels.
        mode: `squash` both sides, or resize the shorter one to `size` and `crop` the centre.
        scale: smallest and largest fraction of the area that a random crop keeps; None: no random crop.
        ratio: smallest and largest aspect ratio of a random crop.
        flip: probability of a left-right flip; use 0 if captions mention left and right.
        interpolation: filter that the model expects (`Preprocess.interpolation`).
        max_pixels: larger images are bad samples.
    """

    size: int
    mode: ResizeMode = "squash"
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    interpolation: Interpolation = "bicubic"
    max_pixels: int = MAX_PIXELS

    def __call__(self, data: bytes, seed: int, where: str = "") -> Tensor:
        """Decode and transform an image; the result depends only on bytes and seed.

        Raises:
            BadSample: the bytes are not an image, or one of more than `max_pixels`; `where` is its address.
        """
        return to_tensor(self.apply(decode_image(data, where, max_pixels=self.max_pixels), seed))

    def apply(self, image: Image.Image, seed: int) -> Image.Image:
        """Transform a decoded RGB image."""
        rng = np.random.Generator(np.random.PCG64(seed))  # equal to default_rng(seed), in two thirds of its time
        if self.scale:
            box = random_box(*image.size, rng, scale=self.scale, ratio=self.ratio)
            image = resize(image.crop(box), self.size, "squash", self.interpolation)
        else:
            image = resize(image, self.size, self.mode, self.interpolation)
        if self.flip and rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def to_tensor(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    """Return an RGB image, or its pixels (H, W, 3), as uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        # Pillow's raw mode "RGB;L" separates the colours of each line at no cost, so that the copy moves whole lines.
        rows = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8).reshape(image.height, 3, image.width)
        return torch.from_numpy(rows.transpose(1, 0, 2).copy())
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
