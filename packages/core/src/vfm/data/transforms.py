"""From a sample's bytes to the tensor of a training step; what is random is drawn from the sample's own seed."""

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
    """Bytes to uint8 (3, S, S): resized, or a random part of the image where `scale` is given.

    size: side of the square, in pixels.
    mode: `squash` both sides, or bring the shorter one to `size` and `crop` the centre.
    scale: smallest and largest share of the area that a random crop keeps; None crops nothing at random.
    ratio: narrowest and widest aspect of a random crop.
    flip: chance of a left-right flip; 0 where captions speak of left and right.
    interpolation: of the model that the images are for (`Preprocess.interpolation`).
    """

    size: int
    mode: ResizeMode = "squash"
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    interpolation: Interpolation = "bicubic"
    max_pixels: int = MAX_PIXELS

    def __call__(self, data: bytes, seed: int, where: str = "") -> Tensor:
        """The image at the wanted size, the same for the same bytes and seed.

        Raises:
            BadSample: the bytes are no image, or one of more than `max_pixels`; `where` names it.
        """
        return to_tensor(self.apply(decode_image(data, where, max_pixels=self.max_pixels), seed))

    def apply(self, image: Image.Image, seed: int) -> Image.Image:
        """The same for an RGB image that is decoded already."""
        rng = np.random.Generator(np.random.PCG64(seed))  # what default_rng makes, in two thirds of the time
        if self.scale:
            box = random_box(*image.size, rng, scale=self.scale, ratio=self.ratio)
            image = resize(image.crop(box), self.size, "squash", self.interpolation)
        else:
            image = resize(image, self.size, self.mode, self.interpolation)
        if self.flip and rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def to_tensor(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    """An RGB image, or the (H, W, 3) pixels of one, as uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        # Pillow puts a line's colours one after another in passing, and whole lines are then what is copied.
        rows = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8).reshape(image.height, 3, image.width)
        return torch.from_numpy(rows.transpose(1, 0, 2).copy())
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
