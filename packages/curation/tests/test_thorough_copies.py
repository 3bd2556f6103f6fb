"""Copies found by local features: each step equals a plain twin, and both filters find what hashes miss."""

import io
import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageOps

from filter_runs import passed, run
from vfm.interfaces import load_panels
from vfm.plugin import Preflight, UserError
from vfm_curation.filters import filter as filter_work
from vfm_curation.filters.copies import buckets
from vfm_curation.filters.copies.alignment import MAX_BITS, align, nearest
from vfm_curation.filters.copies.point_index import LEADERS, MAX_RATIO, MIN_COSINE, candidate_pairs
from vfm_curation.filters.local_points import POINT, mirrored, points_of, word_width, words_of
from vfm_curation.filters.stages import FilterPool

NUMBER = 6


def textured(seed: int) -> Image.Image:
    """Draw blobs of many sizes, so that an image has points at every scale."""
    rng, canvas = np.random.default_rng(seed), np.zeros((160, 160, 3))
    for size in (4, 9, 19, 39):
        blobs = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        canvas += np.asarray(blobs.resize((160, 160), Image.Resampling.BICUBIC)) / size**0.2
    return Image.fromarray((255 * canvas / canvas.max()).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def collage(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (160, 80), "white")
    canvas.paste(image.resize((80, 80)), (0, 0))
    return canvas


def screenshot(image: Image.Image) -> Image.Image:
    page = Image.new("RGB", (150, 150), "white")
    page.paste(image.resize((100, 100)), (30, 40))
    return page


DAMAGES = [lambda image: image.crop((50, 10, 150, 110)), collage, screenshot]
DAMAGES += [lambda image: ImageOps.expand(ImageOps.mirror(image).resize((110, 110)), 20, "black")]


def test_bits_of_a_mirrored_image_are_the_halves_in_exchanged_order() -> None:
    image = textured(0)
    points, reverse = points_of(image), points_of(ImageOps.mirror(image))
    assert len(points) > 60
    exchanged = np.ascontiguousarray(reverse["bits"][:, [2, 3, 0, 1]])
    partners = nearest(np.ascontiguousarray(points["bits"]), exchanged, 20)
    matched = np.flatnonzero(partners >= 0)
    assert len(matched) > 0.8 * len(points)
    assert abs(points["x"][matched] + reverse["x"][partners[matched]] - 1).max() < 0.02  # at the mirrored position
    unexchanged = nearest(np.ascontiguousarray(points["bits"]), np.ascontiguousarray(reverse["bits"]), 20)
    assert (unexchanged >= 0).sum() < 0.1 * len(points)
    descriptors = np.random.default_rng(0).random((5, 128))
    assert (mirrored(mirrored(descriptors)) == descriptors).all()


def test_words_are_bits_of_the_ring_and_equal_for_a_mirrored_point() -> None:
    points = points_of(textured(1))
    swapped = points.copy()
    swapped["bits"] = points["bits"][:, [2, 3, 0, 1]]
    for width in (20, 33, 60):
        words, flags = words_of(points, width)
        same, opposite = words_of(swapped, width)
        assert (words == same).all()
        assert (flags != opposite).mean() > 0.99  # equal only if both halves have the same word
        cut = set()
        for first, second, *_ in points["bits"].tolist():
            ring = f"{first | second << 64:0128b}"[::-1]
            cut.add((ring + ring)[96 : 96 + width])
        assert len(cut) == len(np.unique(words_of(points, width)[0][:, 3])) or width == 20
    assert word_width(1_000_000) > word_width(1000) > 20


def test_nearest_equals_a_comparison_of_all() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**63, (30, 4), dtype=np.uint64)
    flips = np.array([[1 << rng.integers(0, 62) for _ in range(4)] for _ in range(20)], np.uint64)
    second = np.concatenate([first[:20] ^ flips, rng.integers(0, 2**63, (9, 4), dtype=np.uint64)])
    distances = np.bitwise_count(first[:, None] ^ second[None]).sum(axis=-1)
    expected = [
        j if distances[i, j] <= MAX_BITS and distances[:, j].argmin() == i else -1
        for i, j in enumerate(distances.argmin(axis=1).tolist())
    ]
    assert nearest(first, second, MAX_BITS).tolist() == expected == [*range(20), *[-1] * 10]


@pytest.mark.parametrize("mirror", [False, True])
def test_the_transformation_of_a_copy_is_recovered(mirror: bool) -> None:
    image = textured(2)
    turned = (ImageOps.mirror(image) if mirror else image).rotate(-20, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (200, 200), "white")
    canvas.paste(turned.resize((120, 120)), (60, 30))
    found = align(points_of(image), points_of(canvas))
    assert found is not None
    assert found.mirrored == mirror
    assert abs(found.degrees - 20) < 2  # clockwise
    assert abs(found.scale - 120 / 200) < 0.03  # both images have a longer side of 1
    assert found.num_points > 20


def test_other_images_and_equal_texts_are_no_copies() -> None:
    for seed in range(4):
        assert align(points_of(textured(seed)), points_of(textured(seed + 20))) is None
    both = [textured(seed).resize((256, 256)) for seed in (4, 5)]
    for image in both:
        pen = ImageDraw.Draw(image)
        pen.rectangle((10, 60, 110, 90), fill="black")
        pen.text((14, 64), "BREAKING NEWS", fill="white", font_size=12)
    first, second = map(points_of, both)
    shared = nearest(np.ascontiguousarray(first["bits"]), np.ascontiguousarray(second["bits"]), 40)
    assert (shared >= 0).sum() >= 8  # enough points, but they cover a small part
    assert align(first, second) is None
    flat = points_of(Image.new("RGB", (90, 60)))
    assert len(flat) == 0
    assert align(flat, first) is None


@pytest.mark.parametrize("num_references", [0, 3])
def test_candidates_equal_a_plain_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_references: int) -> None:
    images = [textured(seed) for seed in range(4)]
    images += [damage(image) for image, damage in zip(images, DAMAGES, strict=True)]
    points = [points_of(image) for image in images]
    votes = defaultdict(set)
    rows = defaultdict(list)
    for rank, some in enumerate(points):
        words, flags = words_of(some, word_width(len(points)))
        for point, (of_point, flagged) in enumerate(zip(words.tolist(), flags.tolist(), strict=True)):
            for word, flag in zip(of_point, flagged, strict=True):
                rows[word].append((rank, float(some["size"][point]), float(some["angle"][point]), flag))
    for sharing in rows.values():
        leaders: dict[int, Any] = {}
        for row in sharing:  # the first row of an image represents it, as the order of sorting does
            leaders.setdefault(row[0], row)
        assert len(leaders) <= LEADERS
        for leader, row in ((leader, row) for row in sharing for leader in leaders.values() if leader[0] < row[0]):
            if num_references and not leader[0] < num_references <= row[0]:
                continue
            mirror = leader[3] != row[3]
            turn = row[2] - (math.pi - leader[2] if mirror else leader[2])
            votes[leader[0], row[0]].add((round(turn, 4), round(row[1] / leader[1], 4), mirror))
    expected = set()
    for pair, of_pair in votes.items():
        for (turn, scale, mirror), (other, other_scale, other_mirror) in combinations(of_pair, 2):
            near = math.cos(turn - other) > MIN_COSINE and 1 / MAX_RATIO < scale / other_scale < MAX_RATIO
            if near and mirror == other_mirror:
                expected.add(pair)
    assert {(i, i + 4) for i in range(num_references or 4)} <= expected
    monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", 700)
    monkeypatch.setattr(buckets, "BYTES_IN_MEMORY", 9000)
    tables = [
        (np.arange(start, stop), pa.chunked_array([[some.tobytes() for some in points[start:stop]]]))
        for start, stop in ((0, 3), (3, 8))
    ]
    found = candidate_pairs(tables, len(points), tmp_path / "index", num_references)
    assert set(map(tuple, found.tolist())) == expected
    nothing = candidate_pairs([(np.arange(1), pa.chunked_array([[b""]]))], 1, tmp_path / "empty")
    assert nothing.shape == (0, 2)
    assert np.frombuffer(b"", POINT).shape == (0,)


def files() -> dict[str, bytes]:
    originals = {f"original{i}": textured(i) for i in range(NUMBER)}
    copies = {f"copy{i}": DAMAGES[i % 4](textured(i)) for i in range(NUMBER)}
    return {uid: png(image) for uid, image in (originals | copies).items()}


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "seconds" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_near_duplicates_finds_and_lists_what_hashes_miss(make_pool: Any, run_stage: Any) -> None:
    images = files()
    samples = [(uid, {"en": [f"a text of {uid}"]}) for uid in images]
    pool = make_pool("pool", samples, images={**images, "copy0": b"damaged"}, shard_size=5)
    thorough = [{"type": "near_duplicates", "thorough": True}]
    fast = {uid for uid, *_ in passed(run(run_stage, pool, [{"type": "near_duplicates"}], "fast"))}
    one = run(run_stage, pool, thorough, "one")
    originals = {uid for uid in images if uid.startswith("original")}
    assert {uid for uid, *_ in passed(one)} == originals
    assert len(fast - originals) >= 4
    (panel,) = [panel for panel in load_panels(one.path) if panel.title == "Copies of a better image"]
    assert {(row[0], row[1]) for row in panel.rows} == {(f"original{i}", f"copy{i}") for i in range(1, NUMBER)}
    assert {row[1]: row[4] for row in panel.rows}["copy3"] == "yes"
    two = run(run_stage, pool, thorough, "two", runtime={"workers": 2})
    assert contents(one.path) == contents(two.path)
    shuffled = make_pool("shuffled", samples[::-1], images={**images, "copy0": b"damaged"}, shard_size=4)
    assert passed(run(run_stage, shuffled, thorough, "three")) == passed(one)


def test_decontaminate_finds_parts_of_the_images_of_two_sets(make_pool: Any, run_stage: Any) -> None:
    images = files()
    uids = list(images)
    names = {"first": uids[:3], "second": [*uids[3:NUMBER], "damaged"]}
    sets = {
        name: make_pool(name, [(uid, {"en": ["x"]}) for uid in chosen], images={**images, "damaged": b"x"})
        for name, chosen in names.items()
    }
    other = {"other": png(textured(99))}
    pool = make_pool("pool", [(uid, {"en": ["x"]}) for uid in [*uids[NUMBER:], "other"]], images=images | other)

    def left(**settings: Any) -> Any:
        one = {"type": "decontaminate", "against": list(sets), **settings}
        return run(run_stage, pool, [one], f"f{len(settings)}", inputs=sets)

    thorough = left(thorough=True)
    assert {uid for uid, *_ in passed(thorough)} == {"other"}
    assert len(passed(left())) > 3
    (panel,) = [panel for panel in load_panels(thorough.path) if "evaluation sets" in panel.title]
    assert ("second, shard 0, row 1", "copy4") in {(row[0], row[1]) for row in panel.rows}
    assert len(panel.rows) == NUMBER


def test_a_missing_package_is_an_error_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_work, "find_spec", lambda module: None)
    filtering = FilterPool(name="f", pool="p", filters=[{"type": "near_duplicates", "thorough": True}])
    with pytest.raises(UserError, match=r"near_duplicates: needs cv2: .*curation\[copies\]"):
        filtering.preflight(Preflight({}, {}))
