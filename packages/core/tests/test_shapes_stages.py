"""Stages of the synthetic world: artifacts are read back, with the same bytes for any workers and after a crash."""

import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from pydantic import ValidationError

from vfm.base import UserError
from vfm.data import open_dataset
from vfm.data.choices.choices import load_choices
from vfm.data.synthetic.captions import sample_caption
from vfm.data.synthetic.pairs import make_pairs
from vfm.data.synthetic.render import class_names, render_labeled, render_shard
from vfm.data.synthetic.sampling import generator, sample_scene
from vfm.data.synthetic.scene import Attribute, Scene
from vfm.data.synthetic.stages import ShapesChoices, ShapesClasses, ShapesPool
from vfm.data.synthetic.world import World
from vfm.interfaces import Artifact, Context, LabeledDataset, Pool, Stage, load_panels

SMALL = World(image_size=32, shapes=("star", "moon"), colours=("red", "blue", "white"))


def make(stage: Stage, folder: Path) -> Artifact:
    directory, work = folder / "artifact", folder / "work"
    directory.mkdir(parents=True)
    work.mkdir(exist_ok=True)
    stage.run(Context(stage.name, directory, work, {}))
    return Artifact.load(directory)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of an artifact except the scan that is saved when a tar is first opened."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "offsets" not in path.parts
    }


def test_class_groups_are_thirds_by_frequency_in_a_pool(tmp_path: Path) -> None:
    world = SMALL.model_copy(update={"zipf": 1.5})
    stage = ShapesClasses(kind="shapes.classes", name="val", num_samples=12, world=world)
    made = make(stage, tmp_path)
    assert isinstance(made, LabeledDataset)
    assert sorted(label for group in made.class_groups.values() for label in group) == list(range(6))
    scenes = Counter((s.shape, s.colour) for s in (sample_scene(world, generator(3, i)) for i in range(600)))
    counts = {name: sum(scenes[world.combinations[c]] for c in group) for name, group in made.class_groups.items()}
    assert counts["head"] > counts["middle"] > counts["tail"]


@pytest.mark.parametrize("label", ["count", "orientation", "colour", "structure"])
def test_classes_can_be_the_values_of_one_attribute(label: str, tmp_path: Path) -> None:
    stage = ShapesClasses(name="val", num_samples=24, label=label, world=SMALL)
    made = make(stage, tmp_path)
    assert isinstance(made, LabeledDataset)
    values = SMALL.colours if label == "colour" else SMALL.values(label)
    assert made.class_names == [str(value) for value in values]
    source = open_dataset(made)
    samples = [source[index] for index in range(24)]
    assert [sample.label for sample in samples] == [index % len(values) for index in range(24)]
    found = [scene.value(label) for scene in _scenes(made.path)]
    assert found == [values[index % len(values)] for index in range(24)]


def _scenes(folder: Path) -> list[Scene]:
    with tarfile.open(folder / "00000.tar") as tar:
        records = [json.loads(tar.extractfile(name).read()) for name in sorted(tar.getnames()) if name.endswith("json")]
    return [Scene(**record["scene"]) for record in records]


def test_classes_of_an_attribute_that_does_not_vary_are_refused() -> None:
    with pytest.raises(ValidationError, match="'count' does not vary in this world"):
        ShapesClasses(name="val", label="count", world=SMALL.model_copy(update={"attributes": ("size",)}))


def pool_stage(**changes: object) -> ShapesPool:
    settings = {"kind": "shapes.pool", "name": "pool", "num_samples": 50, "samples_per_shard": 20, "world": SMALL}
    return ShapesPool.model_validate(settings | changes)


def test_pool_is_read_back_as_rendered(tmp_path: Path) -> None:
    world = SMALL.model_copy(update={"languages": ("en", "de"), "captions_per_image": 2})
    pool = make(pool_stage(world=world, seed=7), tmp_path)
    assert isinstance(pool, Pool)
    assert (pool.num_samples, pool.languages) == (50, ["en", "de"])
    source = open_dataset(pool)
    assert source.shard_sizes.tolist() == [20, 20, 10]
    for index, made in enumerate(render_shard(world, 7, 0, 50)):
        sample = source[index]
        assert (sample.key, sample.image, sample.texts) == (made.key, made.image, made.texts)
    assert {panel.title for panel in load_panels(pool.path)} >= {
        "First samples",
        "Head and tail of the synthetic world",
    }


def test_pool_has_the_same_bytes_with_workers_and_after_a_crash(tmp_path: Path) -> None:
    plain = contents(make(pool_stage(), tmp_path / "plain").path)
    parallel = make(pool_stage(runtime={"workers": 2}), tmp_path / "parallel")
    assert contents(parallel.path) == plain

    work = tmp_path / "crashed" / "work"  # one complete tar, another truncated when the process died
    work.mkdir(parents=True)
    (work / "00001.tar").write_bytes(plain["00001.tar"])
    (work / "00002.part").write_bytes(plain["00002.tar"][:1000])
    assert contents(make(pool_stage(), tmp_path / "crashed").path) == plain


def test_samples_per_shard_does_not_change_samples(tmp_path: Path) -> None:
    one, other = (open_dataset(make(pool_stage(samples_per_shard=size), tmp_path / str(size))) for size in (7, 50))
    assert [one[index] for index in range(50)] == [other[index] for index in range(50)]


def test_labelled_dataset_is_read_back_with_names_and_prompts(tmp_path: Path) -> None:
    stage = ShapesClasses(kind="shapes.classes", name="val", num_samples=12, world=SMALL, seed=3)
    dataset = make(stage, tmp_path)
    assert isinstance(dataset, LabeledDataset)
    assert dataset.class_names == class_names(SMALL) == [
        "red star", "blue star", "white star", "red moon", "blue moon", "white moon"
    ]  # fmt: skip
    assert all("{}" in template for template in dataset.templates)
    source = open_dataset(dataset)
    assert [source[index].label for index in range(12)] == [0, 1, 2, 3, 4, 5] * 2
    assert [source[index].image for index in range(12)] == [made.image for made in render_labeled(SMALL, 3, 0, 12)]


def test_choices_are_read_back_by_pattern(tmp_path: Path) -> None:
    stage = ShapesChoices(kind="shapes.choices", name="pairs", world=SMALL, pairs_per_pattern=4, seed=5)
    dataset = make(stage, tmp_path)
    choices = list(load_choices(dataset))
    assert dataset.patterns == list(SMALL.patterns)
    assert Counter(choice.pattern for choice in choices) == dict.fromkeys(SMALL.patterns, 4)
    for pattern in SMALL.patterns:
        made = [pair.statements for pair in make_pairs(SMALL, 5, pattern, 4)]
        assert [tuple(choice.statements) for choice in choices if choice.pattern == pattern] == made
    for choice in choices:
        first, second = (np.asarray(Image.open(io.BytesIO(image))) for image in choice.images)
        assert first.shape == (32, 32, 3)
        assert (first != second).any()
        assert choice.truth == [0, 1]
    (panel,) = load_panels(dataset.path)
    assert all((dataset.path / picture.file).is_file() for picture in panel.pictures)
    assert len(panel.pictures) == 2 * 2 * len(SMALL.patterns)


def test_pairs_of_a_pattern_do_not_depend_on_the_other_patterns(tmp_path: Path) -> None:
    def statements(name: str, **settings: object) -> list[list[str]]:
        stage = ShapesChoices(kind="shapes.choices", name="pairs", world=SMALL, pairs_per_pattern=3, **settings)
        return [one.statements for one in load_choices(make(stage, tmp_path / name)) if one.pattern == "count"]

    assert statements("all") == statements("alone", patterns=("count",))


def test_patterns_that_do_not_vary_are_refused_by_the_configuration() -> None:
    round_world = World(shapes=("circle",))
    with pytest.raises(ValidationError, match="'orientation' does not vary in this world; choose from presence"):
        ShapesChoices(kind="shapes.choices", name="pairs", world=round_world, patterns=("orientation",))
    with pytest.raises(ValidationError, match="nothing varies in this world"):
        ShapesChoices(kind="shapes.choices", name="pairs", world=World(attributes=(), colours=("red",)))


def test_shape_stages_import_no_torch() -> None:
    code = "import sys, vfm.data.synthetic.stages; sys.exit('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def make_with_images(folder: Path, images: Artifact, **changes: object) -> Artifact:
    stage = ShapesPool(name="pool", images="images", **changes)  # type: ignore[arg-type]
    for part in ("artifact", "work"):
        (folder / part).mkdir(parents=True)
    stage.run(Context("pool", folder / "artifact", folder / "work", {"images": images.path}))
    return Artifact.load(folder / "artifact")


def test_pool_with_the_images_of_another_equals_one_that_is_drawn(tmp_path: Path) -> None:
    size = {"num_samples": 5, "start": 2, "samples_per_shard": 3}
    other = SMALL.model_copy(update={"attribute_share": 1.0})
    images = make(ShapesPool(name="images", num_samples=9, world=SMALL, seed=4), tmp_path / "images")
    made = make_with_images(tmp_path / "made", images, world=other, seed=4, **size)
    drawn = make(ShapesPool(name="pool", world=other, seed=4, **size), tmp_path / "drawn")
    assert contents(made.path) == contents(drawn.path)


@pytest.mark.parametrize(
    ("changes", "got"),
    [({"seed": 5}, "another image"), ({"num_samples": 10}, "none"), ({"start": 9, "num_samples": 1}, "none")],
)
def test_pool_with_images_of_another_seed_or_too_few_is_refused(
    changes: dict[str, int], got: str, tmp_path: Path
) -> None:
    images = make(ShapesPool(name="images", num_samples=9, world=SMALL, seed=4), tmp_path / "images")
    with pytest.raises(UserError, match=f"of the same world and seed, got {got}"):
        make_with_images(tmp_path / "made", images, **{"world": SMALL, "seed": 4, "num_samples": 9, **changes})


def test_start_gives_the_samples_and_pairs_of_a_longer_dataset(tmp_path: Path) -> None:
    whole = open_dataset(make(ShapesPool(name="pool", num_samples=6, world=SMALL), tmp_path / "whole"))
    part = open_dataset(make(ShapesPool(name="pool", num_samples=2, start=4, world=SMALL), tmp_path / "part"))
    assert [part[k].image for k in range(2)] == [whole[k].image for k in (4, 5)]
    settings = {"world": SMALL, "patterns": ("colour",)}
    long = list(load_choices(make(ShapesChoices(name="pairs", pairs_per_pattern=4, **settings), tmp_path / "long")))
    late = make(ShapesChoices(name="pairs", pairs_per_pattern=2, start=2, **settings), tmp_path / "late")
    assert list(load_choices(late)) == long[2:]


@given(seed=st.integers(0, 2**16), withheld=st.sampled_from(["count", "orientation", "size"]))
def test_captions_lack_a_withheld_attribute_and_name_all_others(seed: int, withheld: Attribute) -> None:
    world = SMALL.model_copy(
        update={"attribute_share": 1.0, "attribute_share_of": {withheld: 0.0}, "noise_share": 0.0, "foreign_share": 0.0}
    )
    full = world.model_copy(update={"attribute_share_of": {}})
    scene = sample_scene(world, generator(seed))
    named, all_named = (set(sample_caption(each, scene, generator(seed, 1)).named) for each in (world, full))
    assert named == all_named - {withheld}


@given(seed=st.integers(0, 2**16), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_larger_share_of_details_keeps_those_of_a_smaller_one(seed: int, shares: tuple[float, float]) -> None:
    clean = SMALL.model_copy(update={"attribute_noise": 0.0, "noise_share": 0.0, "foreign_share": 0.0})
    scene = sample_scene(clean, generator(seed))
    few, many = (
        sample_caption(clean.model_copy(update={"attribute_share": share}), scene, generator(seed, 1)).named
        for share in sorted(shares)
    )
    assert few.items() <= many.items()
