"""Draw a grid of small copies of images with their captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE = 192  # maximum pixels of an image's longer side
GAP = 8  # pixels between images
LINES, LINE_HEIGHT, LETTERS = 3, 15, 30  # lines of a caption, pixels of a line, and letters in a line
FONT_SIZE = 12  # pixels


def contact_sheet(images: Sequence[tuple[Image.Image, str]], *, columns: int = 5) -> Image.Image:
    """Draw images in rows, each above its caption. Captions are cut after three lines.

    Args:
        images: Images of any size and mode with their captions, at least one.
        columns: Images in a row.

    Raises:
        ValueError: If there are no images.
    """
    if not images:
        raise ValueError("expected at least one image, got none")
    columns = min(columns, len(images))
    width = SIDE + GAP
    height = SIDE + LINES * LINE_HEIGHT + 2 * GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for number, (image, caption) in enumerate(images):
        left = GAP + number % columns * width
        top = GAP + number // columns * height
        small = ImageOps.contain(image.convert("RGB"), (SIDE, SIDE))
        sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        lines = textwrap.wrap(caption, LETTERS, max_lines=LINES, placeholder=" ...")
        draw.multiline_text((left, top + SIDE + GAP // 2), "\n".join(lines), fill="black", font=font, spacing=3)
    return sheet
