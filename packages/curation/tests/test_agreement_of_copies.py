"""Shots of the same scene agree by points on what stays, and are no copies by the pixels of what moved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from test_thorough_copies import DAMAGES, textured
from vfm_curation.filters.copies.agreement import (
    BLOCK,
    MIN_AGREEMENT,
    STEP,
    agreement,
    block_correlations,
    warped_to,
)
from vfm_curation.filters.copies.alignment import align
from vfm_curation.filters.copies.same_content import Content, aligned_copy
from vfm_curation.filters.local_points import pixels_of, points_of, thumbnail_of


def content_of(image: Image.Image) -> Content:
    return Content(points_of(image), pixels_of(thumbnail_of(image)))


def later_shot(image: Image.Image, seed: int) -> Image.Image:
    """Change the lower part of the image, 70 % of the height."""
    shot = image.copy()
    shot.paste(textured(seed).crop((0, 0, 160, 112)), (0, 48))
    return shot


def with_text_and_logo(image: Image.Image) -> Image.Image:
    copy = image.copy()
    pen = ImageDraw.Draw(copy)
    pen.multiline_text((20, 50), "some text\nof two lines", fill="white", font_size=20)
    pen.ellipse((100, 90, 150, 140), fill="red")
    return copy


COPIES: list[Callable[[Image.Image], Image.Image]] = [
    *DAMAGES,
    with_text_and_logo,
    lambda image: image.rotate(4, Image.Resampling.BICUBIC, fillcolor="grey"),
    lambda image: ImageOps.mirror(image).resize((120, 160)),
    lambda image: image.resize((60, 60)).resize((400, 400)),
]


@pytest.mark.parametrize("seed", range(3))
def test_shots_of_one_scene_are_no_copies(seed: int) -> None:
    first, second = textured(seed), later_shot(textured(seed), seed + 30)
    assert align(points_of(first), points_of(second))
    assert aligned_copy(content_of(first), content_of(second)) is None
    assert aligned_copy(content_of(second), content_of(first)) is None


@pytest.mark.parametrize("number", range(len(COPIES)))
def test_copies_agree(number: int) -> None:
    image = textured(number)
    contents = content_of(image), content_of(COPIES[number](image))
    assert aligned_copy(*contents)
    assert aligned_copy(*contents[::-1])


def test_images_without_texture_agree() -> None:
    flat = np.full((64, 64), 90, np.uint8)
    assert agreement(flat, flat, np.array([[1.0, 0], [0, 1], [0, 0]])) == 1.0
    assert MIN_AGREEMENT < 1


@pytest.mark.parametrize("samples", range(1, 5))
def test_an_image_is_warped_as_by_arrays_of_all_samples(samples: int) -> None:
    rng = np.random.default_rng(samples)
    image = rng.integers(0, 256, (40, 64)).astype(np.float64)
    height, width = 37, 51
    turn = rng.uniform(-0.3, 0.3)
    linear = samples * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    matrix = np.vstack([linear, rng.uniform(-0.2, 0.2, 2)])

    y, x = (np.mgrid[: height * samples, : width * samples] + 0.5) / samples / 64
    places = 64 * (np.stack([x, y], axis=-1) @ matrix[:2] + matrix[2]) - 0.5
    size = np.array([64, 40])
    inside = ((places > -0.5) & (places < size - 0.5)).all(axis=-1)
    places = np.clip(places, 0, size - 1)
    x, y = np.moveaxis(np.minimum(places.astype(np.int64), size - 2), -1, 0)
    across, down = places[..., 0] - x, places[..., 1] - y
    upper = image[y, x] * (1 - across) + image[y, x + 1] * across
    lower = image[y + 1, x] * (1 - across) + image[y + 1, x + 1] * across
    blocks = (height, samples, width, samples)
    is_known = inside.reshape(blocks).all(axis=(1, 3))
    means = (upper * (1 - down) + lower * down).reshape(blocks).mean(axis=(1, 3))

    values, known = warped_to((height, width), image, matrix, samples)
    assert (known == is_known).all()
    assert 0.05 < known.mean() < 1
    np.testing.assert_allclose(values[known], means[known], rtol=0, atol=1e-9)
    assert not values[~known].any()


def test_a_block_is_compared_where_it_fits_best() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(20, 24)) * 50
    moved = np.roll(first, (1, -1), (0, 1)) * 0.5 + 20
    inside = np.ones(first.shape, np.bool_)
    found = block_correlations(first, moved, inside, 1e-6)
    blocks = [(top, left) for top in range(0, 13, STEP) for left in range(0, 17, STEP)]
    assert len(found) == len(blocks)
    for (top, left), value in zip(blocks, found.tolist(), strict=True):
        block = first[top : top + BLOCK, left : left + BLOCK].ravel()
        best = max(
            float(np.corrcoef(block, moved[y : y + BLOCK, x : x + BLOCK].ravel())[0, 1])
            for y in range(max(0, top - 1), min(12, top + 1) + 1)
            for x in range(max(0, left - 1), min(16, left + 1) + 1)
        )
        assert abs(value - best) < 1e-6
    inside[:, 12:] = False
    assert len(block_correlations(first, moved, inside, 1e-6)) == 4 * 2  # from columns 0 and 4
