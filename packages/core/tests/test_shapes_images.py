"""Images and shards of the synthetic world: drawn correctly, visible, and always the same bytes."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vfm.data import write_tar
from vfm.data.synthetic.drawing import GROUPS, PALETTE, PLACES, draw
from vfm.data.synthetic.outline import EXTENT, distance_table, outline, signed_distance
from vfm.data.synthetic.pairs import sample_pair
from vfm.data.synthetic.render import class_names, render_labeled, render_shard
from vfm.data.synthetic.sampling import generator, sample_scene
from vfm.data.synthetic.scene import (
    COLOURS,
    DIRECTED,
    PATTERNS,
    SHAPES,
    Nuisance,
    Scene,
    Shape,
)
from vfm.data.synthetic.world import World


def plain(shape: Shape, **changes: object) -> Scene:
    return replace(Scene(shape, "black", orientation="up" if shape in DIRECTED else None), **changes)


def changed_pixels(one: NDArray[np.uint8], other: NDArray[np.uint8], levels: int = 40) -> int:
    return int((np.abs(one.astype(int) - other).max(axis=2) > levels).sum())


def num_components(dark: NDArray[np.bool_]) -> int:
    """Label connected regions (by sides or corners), by spreading the largest number in each until nothing changes."""
    number = np.where(dark, np.arange(1, dark.size + 1).reshape(dark.shape), 0)
    while True:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(number, 1), (3, 3))
        spread = np.where(dark, around.max(axis=(2, 3)), 0)
        if (spread == number).all():
            return len(np.unique(number[dark]))
        number = spread


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_cover_the_same_pixels_as_a_supersampled_polygon(shape: Shape) -> None:
    size, fine = 64, 16
    radius, _ = GROUPS[1]
    canvas = Image.new("L", (size * fine, size * fine), 0)
    corners = (outline(shape) * radius + 0.5) * size * fine - 0.5  # Pillow's pixel centres are whole numbers
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners], fill=255)
    expected = np.asarray(canvas, dtype=float).reshape(size, fine, size, fine).mean(axis=(1, 3)) / 255
    image = draw(plain(shape), size)[..., 0].astype(float)
    covered = (image - image[0, 0]) / (255 * PALETTE["black"][0] - image[0, 0])
    assert np.abs(covered - expected).max() < 0.3
    assert np.abs(covered - expected).mean() < 0.003


@pytest.mark.parametrize("shape", SHAPES)
def test_the_distance_table_agrees_with_the_exact_distance(shape: Shape) -> None:
    x, y = np.random.default_rng(0).uniform(-EXTENT, EXTENT, (2, 4000)).astype(np.float32)
    error = np.abs(distance_table(shape)(x, y) - signed_distance(x, y, outline(shape)))
    assert error.max() < 0.01  # of the radius: a twelfth of a pixel at a radius of 8 pixels


def test_signed_distance_of_a_square_is_known() -> None:
    x, y = np.array([0.0, 0.5, 1.0, 1.3, 0.0]), np.array([0.0, 0.0, 0.0, 1.2, 0.8])
    np.testing.assert_allclose(
        signed_distance(x, y, outline("square")), [-0.8, -0.3, 0.2, np.hypot(0.5, 0.4), 0], atol=1e-7
    )


@pytest.mark.parametrize("shape", sorted(DIRECTED))
def test_orientations_are_quarter_turns_of_the_image(shape: Shape) -> None:
    up = draw(plain(shape), 64).astype(int)
    for turns, way in enumerate(("up", "right", "down", "left")):
        turned = draw(plain(shape, orientation=way), 64)
        assert np.abs(turned - np.rot90(up, -turns)).max() <= 1
    assert changed_pixels(draw(plain(shape), 32), draw(plain(shape, orientation="down"), 32)) > 20


def test_positions_move_the_object() -> None:
    for position, (x, y) in PLACES.items():
        dark = draw(plain("circle", position=position), 64)[..., 0] < 60
        rows, columns = np.nonzero(dark)
        assert (columns.mean() + 0.5) / 64 == pytest.approx(x, abs=0.01)
        assert (rows.mean() + 0.5) / 64 == pytest.approx(y, abs=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [32, 64])
def test_group_has_count_objects(shape: Shape, count: int, size: int) -> None:
    for kind in ("big", "small"):
        dark = draw(plain(shape, count=count, size=kind), size)[..., 0] < 90
        assert num_components(dark) == count


def test_no_object_leaves_the_image_or_touches_the_dot() -> None:
    nuisance = Nuisance(shift=(-0.015, -0.015), scale=1.06, ground=(1.0, 1.0, 1.0))
    for shape in SHAPES:
        for count in GROUPS:
            for position in PLACES:
                image = draw(plain(shape, count=count, position=position, nuisance=nuisance), 64)
                dark = image[..., 0] < 128
                assert not dark[:, 0].any()
                assert not dark[0].any()
                assert not dark[:12, :12].any()


def test_shapes_differ_at_32_pixels() -> None:
    images = {
        (shape, way): draw(plain(shape, orientation=way), 32)
        for shape in SHAPES
        for way in (("up", "right", "down", "left") if shape in DIRECTED else (None,))
    }
    for one, image in images.items():
        for other, rival in images.items():
            assert one[0] == other[0] or changed_pixels(image, rival) >= 25, (one, other)


def test_colours_differ_from_each_other_and_the_background() -> None:
    colours = np.array([PALETTE[colour] for colour in COLOURS] + [(0.5, 0.5, 0.5)])
    distance = np.linalg.norm(colours[:, None] - colours, axis=2) + 9 * np.eye(len(colours))
    assert distance.min() > 0.33


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_difference_of_every_pair_is_visible(pattern: str, size: int) -> None:
    world = World(variety=1.0)
    for index in range(150):
        pair = sample_pair(world, generator(2, index), pattern)
        one, other = (draw(scene, size) for scene in pair.scenes)
        assert changed_pixels(one, other, levels=30) >= 4, pair


def test_image_at_twice_the_size_is_the_same_image() -> None:
    for index in range(30):
        scene = replace(
            sample_pair(World(), generator(4, index), "colour").scenes[0], texture="solid", structure="filled"
        )
        large = draw(scene, 128).reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(large - draw(scene, 64)).mean() < 1.5


def test_background_is_constant_only_without_variety() -> None:
    def corners(variety: float) -> set[bytes]:
        world = World(variety=variety, attributes=())
        samples = render_shard(world, 0, 0, 20)
        return {np.asarray(Image.open(io.BytesIO(sample.image)))[2, 2].tobytes() for sample in samples}

    assert len(corners(0.0)) == 1
    assert len(corners(0.5)) > 15


def test_samples_do_not_depend_on_how_the_pool_is_cut() -> None:
    world = World(image_size=32, captions_per_image=2, languages=("en", "de"))
    whole = list(render_shard(world, 3, 0, 30))
    parts = [*render_shard(world, 3, 17, 30), *render_shard(world, 3, 0, 17)]
    assert sorted(parts, key=lambda sample: sample.key) == whole
    assert whole != list(render_shard(world, 4, 0, 30))
    assert len({sample.image for sample in whole}) == 30


def test_another_process_gives_the_same_bytes() -> None:
    code = (
        "import hashlib; from vfm.data.synthetic.render import render_shard\n"
        "from vfm.data.synthetic.world import World\n"
        "h = hashlib.sha256()\n"
        "for s in render_shard(World(), 0, 5, 25): h.update(s.image + repr((s.texts, s.facts)).encode())\n"
        "print(h.hexdigest())"
    )
    digest = hashlib.sha256()
    for sample in render_shard(World(), 0, 5, 25):
        digest.update(sample.image + repr((sample.texts, sample.facts)).encode())
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == digest.hexdigest()


def test_caption_settings_do_not_change_the_images() -> None:
    quiet, noisy = World(), World(noise_share=0.9, attribute_share=1.0, captions_per_image=3)
    one, other = list(render_shard(quiet, 0, 0, 20)), list(render_shard(noisy, 0, 0, 20))
    assert [sample.image for sample in one] == [sample.image for sample in other]
    assert [sample.texts for sample in one] != [sample.texts for sample in other]


def test_pool_labelled_dataset_and_other_seeds_share_no_image() -> None:
    world = World()
    images = [
        sample.image
        for make in (render_shard, render_labeled)
        for seed in (0, 1)
        for sample in make(world, seed, 0, 40)
    ]
    assert len(set(images)) == 160


def test_labels_name_the_scene_and_classes_are_equally_common() -> None:
    world = World(shapes=("star", "moon", "cross"), colours=("red", "blue"))
    names = class_names(world)
    assert names == ["red star", "blue star", "red moon", "blue moon", "red cross", "blue cross"]
    for samples in (render_labeled(world, 0, 0, 60), render_shard(world, 0, 0, 60)):
        for sample in samples:
            scene = sample.facts["scene"]
            assert names[sample.label] == f"{scene['colour']} {scene['shape']}"
    assert np.bincount([sample.label for sample in render_labeled(world, 0, 0, 60)]).tolist() == [10] * 6


def test_tar_is_a_webdataset_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    world = World(image_size=32, languages=("en", "fr"), captions_per_image=2)
    samples = list(render_shard(world, 0, 8, 14))
    for name in ("a.tar", "b.tar"):
        assert write_tar(tmp_path / name, ((sample.key, sample.members()) for sample in samples)) == 6
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
        assert all(member.mtime == 0 and member.uid == 0 and member.uname == "" for member in tar.getmembers())
    assert list(members) == [f"{index:08d}.{end}" for index in range(8, 14) for end in ("jpg", "txt", "json")]
    for sample in samples:
        record = json.loads(members[f"{sample.key}.json"])
        assert {language: record[language] for language in ("en", "fr")} == sample.texts
        assert record["label"] == sample.label
        assert members[f"{sample.key}.txt"].decode() == sample.texts["en"][0]
        assert Image.open(io.BytesIO(members[f"{sample.key}.jpg"])).size == (32, 32)


def test_clutter_is_behind_the_object_and_changes_no_other_draw() -> None:
    for number in range(20):
        scenes = [sample_scene(World(clutter=count), generator(3, number)) for count in (0, 12)]
        scene, cluttered = scenes
        assert len(cluttered.nuisance.clutter) == 12
        assert replace(cluttered, nuisance=replace(cluttered.nuisance, clutter=())) == scene
        before, after = draw(scene, 48), draw(cluttered, 48)
        assert changed_pixels(before, after) > 20
        grounds = [replace(scene.nuisance, ground=ground, waves=()) for ground in ((0, 1, 0), (1, 0, 1))]
        green, purple = (draw(replace(scene, nuisance=nuisance), 48) for nuisance in grounds)
        covered = (green == purple).all(axis=2)  # pixels that show none of the ground
        assert covered.any()
        assert (before[covered] == after[covered]).all()
