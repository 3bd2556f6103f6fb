"""The fixed inputs of a comparison, and the differences between two libraries on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.models.preprocess import Preprocess

NUM_INPUTS = 8
TEXTS = ("a photo of a dog", "a", "red", "two cats on a sofa", "a map of the city", "blue sky", "an old car", "rain")
SIZES = ((40, 64), (64, 40), (48, 48), (90, 30), (300, 400), (33, 47))  # of the images that are not plain
Transform = Callable[[Image.Image], Tensor]


def noise(side: int) -> Tensor:
    """Draw normalised pixels, (8, 3, S, S)."""
    return torch.randn(NUM_INPUTS, 3, side, side, generator=torch.Generator().manual_seed(0))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Compute the relative difference of two tensors by the L2 norm."""
    return float((ours - theirs).norm() / theirs.norm())


def pixel_differences(preprocess: Preprocess, transform: Transform) -> dict[str, float]:
    """Compare pixels, in [0, 1], of images of a single colour and of smooth images that are resized.

    Args:
        preprocess: The preprocessing of the imported model.
        transform: The other library's, from an image to normalised pixels (3, S, S).
    """
    plain = [Image.new("RGB", (50, 40), (0, 128, 255)), Image.new("RGB", (50, 40), (250, 40, 90))]
    smooth = [_smooth_image(size, number) for number, size in enumerate(SIZES)]
    differences = {}
    for name, images in (("pixels", plain), ("resized_pixels", smooth)):
        theirs = [_at_size(transform(image), preprocess.image_size) for image in images]
        ours = preprocess.inputs(images, torch.device("cpu"))
        largest = float((ours - torch.stack(theirs)).abs().max())
        differences[name] = largest * min(preprocess.std)
    return differences


def share_of_different_ids(ours: Tensor, theirs: Tensor, end: int | None) -> float:
    """Compute the share of texts whose ids differ up to the first end token.

    Libraries pad differently after it.

    Args:
        ours: Ids of our tokenizer, (N, L).
        theirs: Ids of the other tokenizer, (N, L).
        end: Id of the end token.
    """
    ends = (theirs == end) if end is not None else torch.zeros_like(theirs)
    num_different = 0
    for our_ids, their_ids, is_end in zip(ours, theirs, ends, strict=True):
        length = int(is_end.nonzero()[0]) + 1 if is_end.any() else len(is_end)
        num_different += not torch.equal(our_ids[:length], their_ids[:length])
    return num_different / len(ours)


def _at_size(pixels: Tensor, side: int) -> Tensor:
    """Resize pixels to the model's size, if the other library makes images of another size."""
    if pixels.shape[-1] == side:
        return pixels
    return F.interpolate(pixels[None], size=(side, side), mode="bicubic", antialias=True)[0]


def _smooth_image(size: tuple[int, int], number: int) -> Image.Image:
    """Draw an image with a smooth gradient of a few colours."""
    seeds = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(seeds).resize(size, Image.Resampling.BICUBIC)
