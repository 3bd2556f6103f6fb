"""Fast decoding: simplejpeg's pixels are Pillow's, and `pixels: fast` stays close to them and uses the same draws."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vfm.data import BadSample, ImageTransform, decode_image
from vfm.data.samples import images
from vfm.data.samples.images import decode_pixels, open_image


def smooth(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


JPEGS = [
    encoded(smooth(width, height, seed), quality=quality, subsampling=subsampling, progressive=progressive)
    for seed, (width, height, quality, subsampling, progressive) in enumerate(
        [
            (500, 375, 90, 2, False),
            (333, 251, 75, 2, True),
            (97, 640, 95, 0, False),
            (640, 97, 60, 1, True),
            (17, 19, 90, 2, False),
        ]
    )
]


@pytest.mark.parametrize("data", JPEGS)
def test_simplejpeg_gives_the_pixels_of_pillow(monkeypatch, data):
    found = images.jpeg_pixels(data, open_image(data, ""))
    assert found is not None
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert (found == decode_pixels(data, open_image(data, ""), "")).all()


def test_what_simplejpeg_does_not_decode_is_left_to_pillow(monkeypatch):
    picture = smooth(60, 40)
    others = [encoded(picture.convert(mode)) for mode in ("L", "CMYK")] + [
        encoded(picture, "PNG"),
        encoded(picture, "WEBP"),
    ]
    damaged = [JPEGS[0][:-3000], JPEGS[0][:5000] + bytes(2000) + JPEGS[0][7000:], JPEGS[0][:700]]
    for data in [*others, *damaged]:
        assert images.jpeg_pixels(data, open_image(data, "")) is None or data in damaged
    with_extra = [outcome(data) for data in [*others, *damaged]]
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert with_extra == [outcome(data) for data in [*others, *damaged]]


def outcome(data: bytes) -> object:
    try:
        return decode_image(data, "x").tobytes()
    except BadSample as bad:
        return bad.reason


@pytest.mark.parametrize("simd", [True, False])
@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(32, scale=(0.4, 1.0), flip=0.5),
        ImageTransform(32, scale=(0.9, 1.0), interpolation="bilinear"),
        ImageTransform(32, "crop"),
        ImageTransform(32),
        ImageTransform(224, scale=(0.9, 1.0)),
    ],
)
def test_fast_pixels_are_close_to_exact_ones(monkeypatch, transform, simd):
    if not simd:
        monkeypatch.setattr(images, "decode_jpeg", None)
    fast = replace(transform, pixels="fast")
    for seed, data in enumerate([*JPEGS[:2], encoded(smooth(900, 700, 9)), encoded(smooth(300, 200), "PNG")]):
        made, exact = fast(data, seed), transform(data, seed)
        assert (made.shape, made.dtype, made.is_contiguous()) == (exact.shape, torch.uint8, True)
        assert (made.float() - exact.float()).abs().mean() < 0.5, "of 255 levels; another crop would be 40 apart"
        assert made.equal(fast(data, seed))


def test_fast_pixels_of_damaged_images_are_bad_samples():
    fast = ImageTransform(32, pixels="fast")
    for data in (b"", b"no image", JPEGS[0][:700], encoded(smooth(300, 200), "PNG")[:500]):
        with pytest.raises(BadSample, match="unreadable_image"):
            fast(data, 0, "x")
