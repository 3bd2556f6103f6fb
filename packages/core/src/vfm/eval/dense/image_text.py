"""Names of classes written into images, each on a background of its class colour."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
ALL_HEIGHTS = "Ag"  # so that names without tall or hanging letters have the same background


def text_size(pen: ImageDraw.ImageDraw, text: str, font: Font) -> tuple[int, int]:
    """Compute width and height of a name with its background."""
    _, top, _, bottom = pen.textbbox((0, 0), ALL_HEIGHTS, font=font)
    return math.ceil(pen.textbbox((0, 0), text, font=font)[2]) + 2, math.ceil(bottom - top) + 4


def write_name(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, colour: NDArray[np.uint8], font: Font
) -> None:
    """Write a name in black or white, by contrast, on a coloured background.

    Args:
        pen: Pen of the image.
        corner: Left and top of the background.
        text: The name.
        colour: Colour of the background.
        font: Font of the name.
    """
    left, top = pen.textbbox((0, 0), text, font=font)[0], pen.textbbox((0, 0), ALL_HEIGHTS, font=font)[1]
    width, height = text_size(pen, text, font)
    x, y = corner
    pen.rectangle((x, y, x + width, y + height), fill=tuple(colour.tolist()))
    # Luma weights of ITU-R BT.601.
    bright = float(colour @ np.array([0.299, 0.587, 0.114])) > 128
    pen.text((x + 1 - left, y + 2 - top), text, fill="black" if bright else "white", font=font)
