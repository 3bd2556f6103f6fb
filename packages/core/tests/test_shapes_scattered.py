"""Scattered scenes: owners, boxes and maps agree with the pixels, and vocabularies label the same pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from annotated_world import run
from vfm.data import open_dataset
from vfm.data.annotated.source import AnnotatedSource
from vfm.data.synthetic.federated import federate
from vfm.data.synthetic.sampling import Stream, generator
from vfm.data.synthetic.scattered import class_names, draw_scattered, label_of, sample_scattered
from vfm.data.synthetic.stages import ShapesScenes
from vfm.data.synthetic.world import World
from vfm.interfaces import AnnotatedImages

SCALE = (0.07, 0.19)
PLAIN = World(image_size=64, variety=0.0)
SMALL = World(image_size=48)


def scenes(folder: Path, **fields: object) -> AnnotatedImages:
    settings = {"world": SMALL, "num_samples": 24, "samples_per_shard": 10, **fields}
    return run(ShapesScenes(kind="shapes.scenes", name="scenes", **settings), folder)  # type: ignore[arg-type]


def test_pixels_outside_all_objects_are_ground() -> None:
    for index in range(20):
        scene = sample_scattered(PLAIN, generator(0, Stream.SCATTERED, index), scale=SCALE)
        drawn = draw_scattered(scene, 64)
        outside = drawn.owners < 0
        ground = np.median(drawn.pixels[outside], axis=0)
        # Anti-aliasing tints the rim of an object, and tips thinner than a pixel are not in its mask.
        shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
        near = np.any([np.roll(~outside, shift, (0, 1)) for shift in shifts], axis=0)
        assert (np.abs(drawn.pixels - ground)[~near] <= 1).all()


def test_every_object_is_in_the_picture_and_later_ones_cover_earlier_ones() -> None:
    for index in range(40):
        scene = sample_scattered(PLAIN, generator(3, Stream.SCATTERED, index), scale=SCALE)
        assert 1 <= len(scene.objects) <= 6
        whole = [draw_scattered(type(scene)((one,), scene.background), 64).owners == 0 for one in scene.objects]
        owners = draw_scattered(scene, 64).owners
        for number, mask in enumerate(whole):
            covered = np.any([np.zeros_like(mask), *whole[number + 1 :]], axis=0)
            assert ((owners == number) == (mask & ~covered)).all()


def test_the_three_vocabularies_label_the_same_pictures(tmp_path: Path) -> None:
    sets = [scenes(tmp_path / str(count), vocabulary=count) for count in (12, 120, 1080)]
    assert [len(one.class_names) for one in sets] == [13, 121, 1081]
    images = [[open_dataset(one)[n].image for n in range(24)] for one in sets]
    assert images[0] == images[1] == images[2]
    sources = [AnnotatedSource(one) for one in sets]
    for number in range(24):
        shape, colour, look = (source.objects(number) for source in sources)
        assert shape.counts == colour.counts == look.counts
        assert (colour.labels // 10 == shape.labels).all()
        assert (look.labels // 9 == colour.labels).all()
    assert sets[2].class_names[9 * 3 + 4] == "striped hole green circle"


def test_labels_are_places_in_the_names() -> None:
    scene = sample_scattered(SMALL, generator(1, Stream.SCATTERED, 5), scale=SCALE)
    for one in scene.objects:
        look = one.look
        assert class_names(SMALL, 12)[label_of(SMALL, 12, look)] == look.shape
        assert class_names(SMALL, 120)[label_of(SMALL, 120, look)] == f"{look.colour} {look.shape}"
        name = f"{look.texture} {look.structure} {look.colour} {look.shape}"
        assert class_names(SMALL, 1080)[label_of(SMALL, 1080, look)] == name


def test_maps_and_masks_agree(tmp_path: Path) -> None:
    data = scenes(tmp_path)
    source = AnnotatedSource(data)
    assert (data.labels, data.background, data.things[-2:]) == (
        ["boxes", "masks", "semantic", "panoptic"],
        12,
        [True, False],
    )
    for number in range(len(source)):
        masks, objects = source.masks(number), source.objects(number)
        assert masks.sum(axis=0).max() <= 1  # visible parts do not overlap
        assert masks.sum(axis=(1, 2)).tolist() == objects.areas.tolist()
        assert (objects.ignored == (objects.areas < 6)).all()
        semantic = source.semantic(number)
        assert ((semantic == 12) == ~masks.any(axis=0)).all()
        for mask, label in zip(masks, objects.labels, strict=True):
            assert (semantic[mask] == label).all()


def test_bytes_do_not_depend_on_shards_or_other_samples(tmp_path: Path) -> None:
    one, other = scenes(tmp_path / "a"), scenes(tmp_path / "b", num_samples=15, samples_per_shard=4)
    a, b = AnnotatedSource(one), AnnotatedSource(other)
    for number in range(15):
        assert a.source[number].image == b.source[number].image
        assert a.objects(number).counts == b.objects(number).counts


def test_zipf_gives_a_long_tail() -> None:
    def shares(zipf: float) -> list[int]:
        found: Counter[int] = Counter()
        for index in range(600):
            scene = sample_scattered(SMALL, generator(0, Stream.SCATTERED, index), zipf=zipf, scale=SCALE)
            found.update(label_of(SMALL, 120, one.look) for one in scene.objects)
        return [count for _, count in found.most_common()]

    uniform, tail = shares(0.0), shares(1.0)
    assert tail[0] > 4 * uniform[0]
    assert tail[-1] < 5


def test_federated_labels_name_what_was_checked(tmp_path: Path) -> None:
    data, full = scenes(tmp_path / "a", federated=True, num_samples=40), scenes(tmp_path / "b", num_samples=40)
    assert (data.federated, data.labels, data.background) == (True, ["boxes", "masks"], None)
    one, whole = AnnotatedSource(data), AnnotatedSource(full)
    negatives, partly = one.tables.column("negatives"), one.tables.column("not_exhaustive")
    for number in range(40):
        present, labelled = whole.objects(number), one.objects(number)
        assert not set(negatives[number]) & set(present.labels.tolist())
        assert len(negatives[number]) == 5
        for label in set(labelled.labels.tolist()):
            missing = (present.labels == label).sum() - (labelled.labels == label).sum()
            assert (missing > 0) == (label in partly[number])
    assert len(one.tables.all) < len(whole.tables.all)


def test_federate_keeps_at_least_one_object_of_a_labelled_class() -> None:
    for seed in range(50):
        found = federate([4, 4, 4, 7], 9, np.random.default_rng(seed))
        labels = {[4, 4, 4, 7][place] for place in found.annotated}
        assert set(found.not_exhaustive) <= labels
        assert not {4, 7} & set(found.negatives)


def test_a_scale_out_of_order_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected scale with 0 < smallest"):
        ShapesScenes(kind="shapes.scenes", name="scenes", scale=(0.3, 0.2))
