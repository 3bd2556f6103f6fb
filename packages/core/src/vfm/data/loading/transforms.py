"""Convert a sample's bytes to the tensor for a training step, with random augmentation drawn from the sample's seed."""

# S side of the square image

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vfm.data.samples.images import (
    MAX_PIXELS,
    Interpolation,
    ResizeMode,
    centred,
    decode_image,
    decode_pixels,
    open_image,
    random_box,
    resize,
)

Decoded = Image.Image | NDArray[np.uint8] | Tensor
"""An image, its pixels (H, W, 3), or the finished uint8 (3, S, S)."""


@dataclass(frozen=True)
class ImageTransform:
    """Turns bytes into uint8 (3, S, S), resized or, if `scale` is given, randomly cropped.

    Attributes:
        size: Side of the square, in pixels.
        mode: `squash` both sides, or resize the shorter side to `size` and `crop` the centre.
        scale: Smallest and largest fraction of the area that a random crop keeps. None: no random crop.
        ratio: Smallest and largest aspect ratio of a random crop.
        flip: Probability of a left-right flip. Use 0 if captions mention left and right.
        interpolation: Filter that the model expects (`Preprocess.interpolation`).
        max_pixels: Larger images are bad samples.
        pixels: `exact` resizes with Pillow, `fast` with torch. Torch is several times as fast, and 0.4 % of the values
            differ, by at most 2 of 255 (`benchmarks/decoding.py`).
    """

    size: int
    mode: ResizeMode = "squash"
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    interpolation: Interpolation = "bicubic"
    max_pixels: int = MAX_PIXELS
    pixels: Literal["exact", "fast"] = "exact"

    @property
    def is_random(self) -> bool:
        """Whether crops or flips are drawn."""
        return bool(self.scale or self.flip)

    def __call__(self, data: bytes, seed: int, where: str = "") -> Tensor:
        """Decode and transform an image. The result depends only on bytes and seed.

        Raises:
            BadSample: If the bytes are not an image, or the image has more than `max_pixels`. `where` is its address.
        """
        return self.draw(self.read(data, where), seed)

    def read(self, data: bytes, where: str = "") -> Decoded:
        """Decode an image, and transform it if nothing is drawn.

        Raises:
            BadSample: If the bytes are not an image, or the image has more than `max_pixels`. `where` is its address.
        """
        decoded: Decoded
        if self.pixels == "fast":
            decoded = decode_pixels(data, open_image(data, where, max_pixels=self.max_pixels), where)
        else:
            decoded = decode_image(data, where, max_pixels=self.max_pixels)
        return decoded if self.is_random else self._transformed(decoded, 0)

    def draw(self, decoded: Decoded, seed: int) -> Tensor:
        """Transform an image that `read` returned."""
        return decoded if isinstance(decoded, Tensor) else self._transformed(decoded, seed)

    def _transformed(self, decoded: Image.Image | NDArray[np.uint8], seed: int) -> Tensor:
        if isinstance(decoded, np.ndarray):
            return self._fast(decoded, _generator(seed))
        return to_tensor(self.apply(decoded, seed))

    def apply(self, image: Image.Image, seed: int) -> Image.Image:
        """Transform a decoded RGB image with exact pixels."""
        if not self.is_random:
            return resize(image, self.size, self.mode, self.interpolation)
        rng = _generator(seed)
        if self.scale:
            box = random_box(*image.size, rng, scale=self.scale, ratio=self.ratio)
            image = resize(image.crop(box), self.size, "squash", self.interpolation)
        else:
            image = resize(image, self.size, self.mode, self.interpolation)
        if self.flip and rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _fast(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
        size, (height, width) = self.size, pixels.shape[:2]
        box, centre = (0, 0, width, height), (size, size, 0, 0)
        if self.scale:
            box = random_box(width, height, rng, scale=self.scale, ratio=self.ratio)
        elif self.mode == "crop":
            centre = centred(width, height, size)
        width, height, left, top = centre
        part = torch.tensor(pixels[box[1] : box[3], box[0] : box[2]]).permute(2, 0, 1)[None]  # Pillow's are read-only
        resized = nn.functional.interpolate(part, (height, width), mode=self.interpolation, antialias=True)[0]
        cropped = resized[:, top : top + size, left : left + size]
        if self.flip and rng.random() < self.flip:
            cropped = cropped.flip(2)
        return cropped.contiguous()


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))  # equal to default_rng(seed), in two thirds of its time


def to_tensor(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    """Convert an RGB image, or its pixels (H, W, 3), to uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        # Pillow's raw mode "RGB;L" separates the colours of each line at no cost, so that the copy moves whole lines.
        rows = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8).reshape(image.height, 3, image.width)
        return torch.from_numpy(rows.transpose(1, 0, 2).copy())
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
