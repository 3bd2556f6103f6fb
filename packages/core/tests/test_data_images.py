"""Image transforms: equal to torchvision's, and deterministic for a seed."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from data_samples import draw_sample, encoded
from vfm.data import BadSample
from vfm.data.loading.transforms import ImageTransform, to_tensor
from vfm.data.samples.images import decode_image, random_box, resize
from vfm.models import Preprocess

SIDES = st.integers(5, 60)


@settings(max_examples=30)
@given(SIDES, SIDES, st.integers(4, 48), st.sampled_from(["bicubic", "bilinear"]))
def test_crop_and_squash_equal_torchvisions_transforms(width, height, size, interpolation):
    from torchvision.transforms import CenterCrop, Compose, Resize
    from torchvision.transforms.functional import InterpolationMode

    image, kind = draw_sample(1, (width, height)), InterpolationMode(interpolation)
    peers = {"crop": Compose([Resize(size, kind), CenterCrop(size)]), "squash": Resize((size, size), kind)}
    for mode, peer in peers.items():
        assert np.array_equal(np.asarray(resize(image, size, mode, interpolation)), np.asarray(peer(image)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_training_resizes_like_the_evaluation(interpolation):
    data = encoded(3, size=(60, 40))
    facts = Preprocess(image_size=16, interpolation=interpolation)
    transform = ImageTransform(16, "crop", interpolation=interpolation)
    assert np.array_equal(transform(data, 0).permute(1, 2, 0).numpy(), facts.fit(decode_image(data, "")))
    whole = ImageTransform(16, scale=(1.0, 1.0), ratio=(1.5, 1.5), interpolation=interpolation)
    squashed = Preprocess(image_size=16, interpolation=interpolation, resize_mode="squash")
    assert np.array_equal(whole(data, 0).permute(1, 2, 0).numpy(), squashed.fit(decode_image(data, "")))


@given(SIDES, SIDES, st.integers(0, 1000))
def test_random_box_is_inside_with_the_given_area_and_aspect(width, height, seed):
    scale, ratio = (0.2, 0.9), (3 / 4, 4 / 3)
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed), scale=scale, ratio=ratio)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    # Sides are rounded to whole pixels, so both bounds hold to half a pixel per side.
    assert (w - 0.5) / (h + 0.5) <= ratio[1]
    assert (w + 0.5) / (h - 0.5) >= ratio[0]
    assert (w - 0.5) * (h - 0.5) <= scale[1] * width * height or max(width, height) > ratio[1] * min(width, height)


def test_too_narrow_image_gives_its_centre():
    assert random_box(100, 4, np.random.default_rng(0), scale=(0.9, 1), ratio=(1, 1)) == (48, 0, 52, 4)


def test_random_crops_depend_only_on_the_seed_and_cover_the_range():
    transform = ImageTransform(16, scale=(0.3, 1.0), flip=0.5)
    data = encoded(3, size=(60, 40))
    assert torch.equal(transform(data, 7), transform(data, 7))
    assert len({transform(data, seed).numpy().tobytes() for seed in range(20)}) == 20
    assert transform(data, 0).shape == (3, 16, 16)
    assert transform(data, 0).dtype == torch.uint8


def test_flips_have_the_given_probability():
    transform = ImageTransform(16, flip=0.5)
    data = encoded(3)
    plain = ImageTransform(16)(data, 0)
    flipped = sum(torch.equal(transform(data, seed), plain.flip(-1)) for seed in range(400))
    assert 150 < flipped < 250
    assert all(torch.equal(ImageTransform(16, flip=1.0)(data, seed), plain.flip(-1)) for seed in range(5))


def test_normalising_bytes_equals_normalising_floats():
    batch = torch.stack([to_tensor(draw_sample(n)) for n in range(3)])
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    expected = (batch.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    pixels = Preprocess(image_size=batch.shape[-1], mean=mean, std=std).pixels(batch)
    torch.testing.assert_close(pixels.double(), expected, atol=2e-6, rtol=1e-6)


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_transparent_pixels_become_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.asarray(decode_image(_bytes(clear), "")).min() == 255
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] * 2)
    assert np.asarray(decode_image(_bytes(palette, transparency=0), "")).min() == 255
    assert np.asarray(decode_image(_bytes(palette), ""))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "CMYK", "I;16", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    levels = np.full((8, 8), 0x8040, dtype=np.uint16)
    image = Image.fromarray(levels) if mode == "I;16" else Image.new(mode, (8, 8))
    kind = "TIFF" if mode == "CMYK" else "PNG"
    decoded = decode_image(_bytes(image, kind), "")
    assert (decoded.mode, decoded.size) == ("RGB", (8, 8))
    if mode == "I;16":
        assert np.unique(np.asarray(decoded)).tolist() == [0x80]


def test_truncated_image_raises_with_its_address():
    data = encoded(0, "JPEG", (64, 64))
    with pytest.raises(BadSample, match="here: unreadable_image"):
        ImageTransform(8)(data[: len(data) // 2], 0, "here")
