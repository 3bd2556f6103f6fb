"""Decode and resize images. The header is checked before pixels are decoded."""

from __future__ import annotations

import io
import math
import warnings
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    from simplejpeg import decode_jpeg
except ImportError:
    decode_jpeg = None

from vfm.data.samples.sample import BadSample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")


VIDEO_EXTENSIONS = (
    "mp4", "webm", "mkv", "avi", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "ts", "3gp", "ogv",
)  # fmt: skip


MAX_PIXELS = 64_000_000  # a larger image is a mistake or an attack, and would take hundreds of MB when decoded
MAX_SIDE_RATIO = 100  # beyond it no crop shows anything useful
ResizeMode = Literal["squash", "crop"]
Interpolation = Literal["bicubic", "bilinear"]
FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""Pillow's filters. All of them antialias when an image shrinks."""


@cache
def _ignore_pillows_limit() -> None:
    """Ignore Pillow's warning, because our limit replaces it.

    A filter around each image is slow and not thread-safe.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image by reading its header, without decoding its pixels.

    Args:
        data: Bytes of the file.
        where: Its address, for messages.
        max_pixels: Largest number of pixels.

    Raises:
        BadSample: If the bytes are not an image, or the image has more than `max_pixels`.
    """
    _ignore_pillows_limit()
    try:
        image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadSample("image_too_large", where) from None
    except Exception:  # Pillow's format plugins raise errors of many types on broken bytes
        raise BadSample("unreadable_image", where) from None
    width, height = image.size
    if width * height > max_pixels:
        raise BadSample("image_too_large", where)
    if min(width, height) < 1 or max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise BadSample("unreadable_image", where)
    return image


def decode_image(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB. Transparent pixels become white, 16-bit greys become 8-bit.

    Args:
        data: Bytes of the file.
        where: Its address, for messages.
        max_pixels: Largest number of pixels.

    Raises:
        BadSample: If the bytes are not an image, or the image is broken or has more than `max_pixels`.
    """
    image = open_image(data, where, max_pixels=max_pixels)
    pixels = jpeg_pixels(data, image)
    if pixels is None:
        return _decoded(image, where)
    return Image.fromarray(pixels)


def decode_pixels(data: bytes, opened: Image.Image, where: str) -> NDArray[np.uint8]:
    """Decode an opened image to the pixels of `decode_image`, (H, W, 3).

    Args:
        data: Bytes of the file.
        opened: The image, opened by `open_image`.
        where: Address for errors.

    Raises:
        BadSample: If the image is broken.
    """
    pixels = jpeg_pixels(data, opened)
    if pixels is None:
        return np.asarray(_decoded(opened, where))
    return pixels


def jpeg_pixels(data: bytes, opened: Image.Image) -> NDArray[np.uint8] | None:
    """Decode a JPEG with three colours by simplejpeg.

    simplejpeg (the extra `jpeg`) is faster than Pillow and gives the same pixels, as a test checks: both bundle
    libjpeg-turbo with its accurate transform and smooth upsampling. So results do not depend on the installed packages.

    Args:
        data: Bytes of the file.
        opened: The image, opened by Pillow.

    Returns:
        (H, W, 3), or None if the image must be left to Pillow.
    """
    if decode_jpeg is None or opened.format != "JPEG" or opened.mode != "RGB":
        return None
    try:
        pixels: NDArray[np.uint8] = decode_jpeg(data)
    except ValueError:  # it rejects damaged files, while Pillow decodes as much as possible
        return None
    return pixels if pixels.shape == (opened.height, opened.width, 3) else None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB. Transparent pixels become white, 16-bit greys become 8-bit."""
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _decoded(image: Image.Image, where: str) -> Image.Image:
    """Decode an opened image by Pillow."""
    try:
        return to_rgb(image)
    except Exception:  # a truncated or damaged image may fail in any way
        raise BadSample("unreadable_image", where) from None


def resize(image: Image.Image, size: int, mode: ResizeMode, interpolation: Interpolation = "bicubic") -> Image.Image:
    """Resize an image to a square of `size` pixels, with antialiasing. Sizes are rounded as in torchvision.

    Args:
        image: RGB image.
        size: Side in pixels.
        mode: `squash` both sides to `size`, or resize the shorter side and `crop` the centre.
        interpolation: Filter of the resize.
    """
    if mode == "squash":
        return image.resize((size, size), FILTERS[interpolation])
    width, height, left, top = centred(*image.size, size)
    return image.resize((width, height), FILTERS[interpolation]).crop((left, top, left + size, top + size))


def centred(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Compute the geometry of a central square crop.

    Args:
        width: Width of the image.
        height: Height of the image.
        size: Side of the square.

    Returns:
        Width and height after resizing the shorter side to `size`, and left and top of the square.
    """
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    return width, height, round((width - size) / 2), round((height - size) / 2)


def random_box(
    width: int, height: int, rng: np.random.Generator, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw a random box in an image, with area uniform in `scale` of the whole and aspect log-uniform in `ratio`.

    If ten draws do not fit, the box is the largest centred box with an allowed aspect.

    Returns:
        (left, top, right, bottom).

    Source: Szegedy et al. 2015 (arXiv:1409.4842), as in torchvision's RandomResizedCrop.
    """
    narrow = math.log(ratio[0])
    wide = math.log(ratio[1])
    for _ in range(10):  # a + (b - a) * random() is bit-equal to `uniform(a, b)` and takes a third of its time
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(narrow + (wide - narrow) * rng.random())
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, round(height * aspect))
    h = min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
