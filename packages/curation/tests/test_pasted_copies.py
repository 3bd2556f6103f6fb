"""Which of two copies is kept: the image, not a collage or screenshot of it, and the original, not a crop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from filter_runs import passed, run
from test_thorough_copies import png, textured
from vfm.interfaces import load_panels
from vfm_curation.filters.copies.alignment import align
from vfm_curation.filters.copies.pasted import inverted, is_pasted
from vfm_curation.filters.copies.point_index import FEW_POINTS
from vfm_curation.filters.hashes import phash, variant_hashes
from vfm_curation.filters.local_points import THUMBNAIL_SIDE as SIDE, pixels_of, points_of, thumbnail_of


def collage(image: Image.Image) -> Image.Image:
    """Place an image beside another one."""
    canvas = Image.new("RGB", (320, 160))
    canvas.paste(textured(77).point(lambda value: value // 2), (0, 0))
    canvas.paste(image, (160, 0))
    return canvas


def screenshot(image: Image.Image) -> Image.Image:
    page = Image.new("RGB", (300, 380), "white")
    ImageDraw.Draw(page).rectangle((0, 0, 300, 30), fill=(40, 60, 120))
    page.paste(image, (90, 120))
    return page


def turned_page(image: Image.Image) -> Image.Image:
    return screenshot(image).rotate(10, Image.Resampling.BICUBIC, fillcolor="white")


def bordered(image: Image.Image) -> Image.Image:
    return ImageOps.expand(ImageOps.mirror(image), 20, "black")


PAGES: list[Callable[[Image.Image], Image.Image]] = [collage, screenshot, turned_page, bordered]
PARTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop": lambda image: image.crop((20, 30, 120, 150)),
    "small crop": lambda image: image.crop((30, 30, 110, 110)).resize((60, 60)),
    "mirrored crop": lambda image: ImageOps.mirror(image).crop((10, 10, 120, 130)),
    "same frame": lambda image: image.resize((130, 130)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.__name__)
def test_an_image_is_pasted_in_a_page_and_not_the_page_in_the_image(
    seed: int, page: Callable[[Image.Image], Image.Image]
) -> None:
    image = textured(seed)
    found = align(points_of(image), points_of(page(image)))
    assert found
    small, large = pixels_of(thumbnail_of(image)), pixels_of(thumbnail_of(page(image)))
    assert is_pasted(small, large, found.matrix)
    assert not is_pasted(large, small, inverted(found.matrix))


def detailed_at_three_sides(seed: int) -> Image.Image:
    """Draw an image whose left side has little detail, and the others much."""
    image = textured(seed).filter(ImageFilter.GaussianBlur(4))
    blocks = 255 * np.random.default_rng(seed).integers(0, 2, (16, 16), dtype=np.uint8)
    frame = Image.fromarray(blocks).resize(image.size, Image.Resampling.NEAREST).convert("RGB")
    frame.paste(image.crop((0, 15, 120, 145)), (0, 15))
    return frame


@pytest.mark.parametrize("seed", range(3))
def test_only_the_sides_inside_of_a_page_count(seed: int) -> None:
    image = detailed_at_three_sides(seed)
    page = Image.new("RGB", (320, 160), "grey")
    page.paste(ImageOps.mirror(image).point(lambda value: value // 2), (0, 0))
    page.paste(image, (160, 0))
    matrix = np.array([[0.5, 0.0], [0.0, 0.5], [0.5, 0.0]])
    assert is_pasted(pixels_of(thumbnail_of(image)), pixels_of(thumbnail_of(page)), matrix)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part", PARTS)
def test_a_crop_is_not_pasted_in_its_original(seed: int, part: str) -> None:
    image = textured(seed)
    found = align(points_of(PARTS[part](image)), points_of(image))
    assert found
    crop, original = pixels_of(thumbnail_of(PARTS[part](image))), pixels_of(thumbnail_of(image))
    assert not is_pasted(crop, original, found.matrix)
    assert not is_pasted(original, crop, inverted(found.matrix))


def with_logo(seed: int) -> Image.Image:
    """Draw a large photo with a logo on 5 % of its area."""
    photo = textured(seed).resize((640, 480))
    photo.paste("white", (460, 300, 640, 480))
    photo.paste(textured(101).resize((120, 120)), (490, 330))
    return photo


def test_photos_with_a_logo_and_the_logo_itself_are_kept(make_pool: Any, run_stage: Any) -> None:
    logo = textured(101)
    photos = {f"photo{seed}": with_logo(seed) for seed in range(3)}
    found = align(points_of(logo), points_of(photos["photo1"]))
    assert found
    assert not is_pasted(pixels_of(thumbnail_of(logo)), pixels_of(thumbnail_of(photos["photo1"])), found.matrix)
    files = {uid: png(image) for uid, image in {**photos, "logo": logo}.items()}
    pool = make_pool("pool", [(uid, {"en": ["a text"]}) for uid in files], images=files)
    subset = run(run_stage, pool, [{"type": "near_duplicates", "thorough": True}], "kept")
    assert {uid for uid, *_ in passed(subset)} == set(files)


def test_the_way_back_of_a_map_is_its_inverse() -> None:
    matrix = np.array([[0.5, 0.2], [-0.1, 0.4], [0.3, 0.05]])
    places = np.random.default_rng(0).random((5, 2))
    there = places @ matrix[:2] + matrix[2]
    assert np.allclose(there @ inverted(matrix)[:2] + inverted(matrix)[2], places)


def test_a_thumbnail_has_the_pixels_of_the_scaled_image() -> None:
    pixels = pixels_of(thumbnail_of(textured(0).resize((120, 60))))
    assert pixels.shape == (SIDE // 2, SIDE)
    assert pixels_of(thumbnail_of(Image.new("L", (300, 1), 7))).tolist() == [[7] * SIDE]


def test_images_are_kept_instead_of_larger_pages_and_originals_instead_of_crops(make_pool: Any, run_stage: Any) -> None:
    images = {f"image{number}": textured(number) for number in range(4)}
    images |= {f"page{number}": page(textured(number)) for number, page in enumerate(PAGES)}
    images |= {"image8": textured(8), "crop8": textured(8).crop((20, 30, 120, 150))}
    files = {uid: png(image) for uid, image in images.items()}
    pool = make_pool("pool", [(uid, {"en": ["a text"]}) for uid in files], images=files, shard_size=3)
    filters = [{"type": "near_duplicates", "thorough": True}]
    one = run(run_stage, pool, filters, "one")
    kept = {uid for uid, *_ in passed(one)}
    assert kept == {uid for uid in images if uid.startswith("image")}
    (panel,) = [panel for panel in load_panels(one.path) if panel.title == "Copies of a better image"]
    assert {(row[0], row[1]) for row in panel.rows} == {
        *((f"image{number}", f"page{number}") for number in range(4)), ("image8", "crop8")
    }  # fmt: skip
    rows = {row[1]: row for row in panel.rows}
    assert abs(rows["page2"][2] + 10) < 1.5  # from the image to the page: counter-clockwise
    assert abs(rows["page1"][3] - 160 / 380) < 0.02
    assert rows["page3"][4] == "yes"
    shuffled = make_pool("shuffled", [(uid, {"en": ["a text"]}) for uid in [*files][::-1]], images=files, shard_size=4)
    assert {uid for uid, *_ in passed(run(run_stage, shuffled, filters, "two"))} == kept


def other_with_the_coarse_forms_of_a_mirrored_image(seed: int) -> Image.Image:
    """Draw fine texture over what remains of a mirrored image in its perceptual hash."""
    coarse = np.asarray(ImageOps.mirror(textured(seed)).filter(ImageFilter.GaussianBlur(6)), np.float64)
    other = textured(seed + 50)
    fine = np.asarray(other, np.float64) - np.asarray(other.filter(ImageFilter.GaussianBlur(3)), np.float64)
    canvas = 128 + 0.5 * (coarse - coarse.mean()) + 1.4 * fine
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def drawing() -> Image.Image:
    image = Image.new("RGB", (160, 160), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 20, 90, 140), fill="black")
    pen.rectangle((100, 90, 150, 150), fill="grey")
    return image


def test_hashes_of_variants_count_only_for_images_with_few_points(make_pool: Any, run_stage: Any) -> None:
    one, other = textured(3), other_with_the_coarse_forms_of_a_mirrored_image(3)
    assert min((phash(other) ^ variant).bit_count() for variant in variant_hashes(one)) <= 6
    assert (phash(one) ^ phash(other)).bit_count() > 20
    assert min(len(points_of(image)) for image in (one, other)) >= FEW_POINTS
    assert len(points_of(drawing())) < FEW_POINTS
    files = {"one": png(one), "drawing": png(drawing())}
    others = {"other": png(other), "reversed": png(ImageOps.mirror(drawing())), "different": png(textured(9))}
    samples = [(uid, {"en": ["a text"]}) for uid in files | others]
    pool = make_pool("pool", samples, images=files | others)
    reference = make_pool("reference", samples[:2], images=files)
    copies = make_pool("copies", samples[2:], images=others)

    def kept(thorough: bool) -> tuple[set[str], set[str]]:
        settings = {"thorough": thorough}
        near = [{"type": "near_duplicates", **settings}]
        known = [{"type": "decontaminate", "against": ["reference"], **settings}]
        distinct = run(run_stage, pool, near, f"near{thorough}")
        clean = run(run_stage, copies, known, f"clean{thorough}", inputs={"reference": reference})
        return {uid for uid, *_ in passed(distinct)}, {uid for uid, *_ in passed(clean)}

    distinct, clean = kept(thorough=False)
    assert len(distinct) == 3
    assert clean == {"different"}
    distinct, clean = kept(thorough=True)
    assert {"one", "other", "different"} < distinct
    assert len(distinct) == 4
    assert clean == {"other", "different"}
