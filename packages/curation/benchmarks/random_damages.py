"""Damages of images whose place, size and strength are drawn for each image."""

from __future__ import annotations

import random
from collections.abc import Callable

from copies import jpeg
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

Damage = Callable[[Image.Image, random.Random], Image.Image]


def crop_anywhere(image: Image.Image, draw: random.Random) -> Image.Image:
    """Cut 5 to 20 % of the area away, with the rest at any place."""
    side = (1 - draw.uniform(0.05, 0.2)) ** 0.5
    width, height = round(side * image.width), round(side * image.height)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def rotate(image: Image.Image, draw: random.Random) -> Image.Image:
    """Rotate by 1 to 5 degrees, with corners of any grey."""
    grey = draw.randrange(256)
    degrees = draw.choice([-1, 1]) * draw.uniform(1, 5)
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(grey, grey, grey))


def text(image: Image.Image, draw: random.Random) -> Image.Image:
    """Write one to three lines at any place, in black or white."""
    copy = image.copy()
    lines = "\n".join(
        "".join(draw.choices("abcdefghij klmno", k=draw.randint(8, 20))) for _ in range(draw.randint(1, 3))
    )
    place = (draw.uniform(0, 0.5) * image.width, draw.uniform(0, 0.8) * image.height)
    size = draw.uniform(0.05, 0.12) * image.height
    ImageDraw.Draw(copy).multiline_text(place, lines, fill=draw.choice(["white", "black"]), font_size=size)
    return copy


def logo(image: Image.Image, draw: random.Random) -> Image.Image:
    """Cover 2 to 8 % of the area by a coloured ellipse."""
    copy, side = image.copy(), draw.uniform(0.02, 0.08) ** 0.5
    left, top = draw.uniform(0, 1 - side) * image.width, draw.uniform(0, 1 - side) * image.height
    box = (left, top, left + side * image.width, top + side * image.height)
    ImageDraw.Draw(copy).ellipse(box, fill=tuple(draw.randrange(256) for _ in range(3)))
    return copy


def bar(image: Image.Image, draw: random.Random) -> Image.Image:
    """Add a bar of 8 to 25 % above or below."""
    size = round(draw.uniform(0.08, 0.25) * image.height)
    canvas = Image.new("RGB", (image.width, image.height + size), draw.choice(["white", "black"]))
    canvas.paste(image, (0, draw.choice([0, size])))
    return canvas


def border(image: Image.Image, draw: random.Random) -> Image.Image:
    """Add a border of 3 to 15 % of the width, of any grey."""
    return ImageOps.expand(image, round(draw.uniform(0.03, 0.15) * image.width), (draw.randrange(256),) * 3)


def mirror_and_border(image: Image.Image, draw: random.Random) -> Image.Image:
    """Mirror an image and add a border."""
    return border(ImageOps.mirror(image), draw)


def squash(image: Image.Image, draw: random.Random) -> Image.Image:
    """Change the aspect by 10 to 30 %."""
    return image.resize((round(draw.uniform(0.7, 0.9) * image.width), image.height))


def colours(image: Image.Image, draw: random.Random) -> Image.Image:
    """Change brightness, contrast and saturation, and save as JPEG of a low quality."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(draw.uniform(0.6, 1.6))
    return jpeg(image, draw.randint(10, 40))


def small(image: Image.Image, draw: random.Random) -> Image.Image:
    """Scale to an eighth up to a third."""
    scale = draw.uniform(0.12, 0.33)
    return image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))


def screenshot(image: Image.Image, draw: random.Random) -> Image.Image:
    """Place an image, at 40 to 80 % of the width, on a page with a bar above and lines of text."""
    width = round(image.width / draw.uniform(0.4, 0.8))
    page = Image.new("RGB", (width, round(width * draw.uniform(0.7, 1.6))), "white")
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, width, 0.08 * page.height), fill=(40, 60, 120))
    pen.multiline_text(
        (0.05 * width, 0.85 * page.height), "some lines\nof a page", fill="black", font_size=0.03 * width
    )
    page.paste(image, (draw.randint(0, width - image.width), round(draw.uniform(0.1, 0.3) * page.height)))
    return page


def collage(image: Image.Image, draw: random.Random) -> Image.Image:
    """Place an image and its mirrored, enhanced copy next to each other."""
    canvas = Image.new("RGB", (2 * image.width, image.height))
    canvas.paste(ImageEnhance.Brightness(ImageOps.mirror(image)).enhance(0.5), (0, 0))
    canvas.paste(image, (image.width, 0))
    return canvas


LIGHT: tuple[Damage, ...] = (crop_anywhere, rotate, text, logo, squash, colours, small)


def two(image: Image.Image, draw: random.Random) -> Image.Image:
    """Apply two of the lighter damages."""
    for damage in draw.sample(LIGHT, 2):
        image = damage(image, draw)
    return image


DAMAGES: dict[str, Damage] = {
    "crop of 5 to 20 %, anywhere": crop_anywhere,
    "rotation of 1 to 5 degrees": rotate,
    "text": text,
    "logo": logo,
    "bar of 8 to 25 %, above or below": bar,
    "border of 3 to 15 %": border,
    "mirror and border": mirror_and_border,
    "aspect": squash,
    "colours and JPEG": colours,
    "small": small,
    "screenshot": screenshot,
    "collage": collage,
    "two of them": two,
}
