"""Training from stored targets equals training with the teacher, and `eva.targets` resumes after a crash."""

from __future__ import annotations

import tarfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from eva_toy import STUDENT, context, losses, make_pool, make_teacher, run, stage
from vfm.data import CACHE_FOLDER, CachedTensors, ImageTransform, SampleDraw, TrainingData, open_dataset
from vfm.models import load_clip, save_clip
from vfm.plugin import (
    ClipCheckpoint,
    Event,
    Pool,
    Preflight,
    SampleCache,
    UserError,
)
from vfm_eva import BlockMask, EvaTargets, Features
from vfm_eva.pretrain.masks import MaskedData, Masks
from vfm_eva.targets.images import EvaInputs, MakeViews, MakeWithTargets
from vfm_eva.targets.pca import Pca
from vfm_eva.targets.phi_s import PhiS
from vfm_eva.targets.stored import StoredTargets
from vfm_eva.targets.teacher import load_teacher

CACHED = {"teacher": None, "targets": "targets"}


def targets_stage(**changes: Any) -> EvaTargets:
    settings = {
        "name": "targets",
        "data": "pool",
        "teacher": "teacher",
        "grid": [4, 4],
        "dtype": "fp32",
        "micro_batch_size": 8,
        "runtime": {"device": "cpu"},
    }
    return EvaTargets.model_validate(settings | changes)


def make_targets(folder: Path, pool: Pool, teacher: ClipCheckpoint, **changes: Any) -> SampleCache:
    return targets_stage(**changes).run(context(folder, pool=pool, teacher=teacher))


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Pool:
    """Make a pool of one step per epoch, so that the n-th step has the n-th crops."""
    return make_pool(tmp_path_factory.mktemp("eight"), num_samples=8)


@pytest.mark.parametrize("teacher_model", ["ViT-Pico-8-32", "ViT-Pico-8-64"])
@pytest.mark.parametrize("target", [{}, {"layer": 0, "projected": False}, {"normalize": True}])
def test_training_from_the_cache_is_training_with_the_teacher(tmp_path, eight, teacher_model, target):
    teacher = make_teacher(tmp_path / "teacher", teacher_model)
    crops = {"augmentation": {"crop_scale": [0.3, 0.9], "flip": 0.4}, "target": target, "seed": 5}
    settings = {"steps": 6, "global_batch_size": 8, "student": {"drop_path": 0.2}, "seed": 5}
    run(tmp_path / "live", settings | crops, pool=eight, teacher=teacher)
    cache = make_targets(tmp_path / "targets", eight, teacher, num_crops=6, **crops)
    run(tmp_path / "cached", settings | CACHED, pool=eight, targets=cache)
    live, cached = losses(tmp_path / "live"), losses(tmp_path / "cached")
    assert len(set(live)) == 6
    assert cached == pytest.approx(live, abs=1e-6)


def test_a_cache_of_half_precision_trains_nearly_the_same(tmp_path, eight, teacher):
    settings = {"steps": 6, "global_batch_size": 8}
    run(tmp_path / "live", settings, pool=eight, teacher=teacher)
    cache = make_targets(tmp_path / "targets", eight, teacher, num_crops=6, dtype="fp16")
    run(tmp_path / "cached", settings | CACHED, pool=eight, targets=cache)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "least"),
    [({"dtype": "int8"}, 0.9995), ({"components": 32}, 0.9), ({"dtype": "int8", "components": 64}, 0.9995)],
)
def test_targets_in_fewer_bytes_stay_near_the_exact_ones(tmp_path, pool, teacher, changes, least):
    exact = CachedTensors(make_targets(tmp_path / "exact", pool, teacher))
    small = make_targets(tmp_path / "small", pool, teacher, **changes)
    assert small.shape == (4, 4, changes.get("components", 64))
    stored = CachedTensors(small)
    pca = Pca.load(small.path) if "components" in changes else None
    assert small.basis == ("pca.safetensors" if pca else "")
    cosines = []
    for index in range(len(exact)):
        coded = torch.from_numpy(stored[index, 0]).flatten(0, 1)
        inputs = EvaInputs(torch.empty(0), torch.empty(0), targets=coded)
        found = StoredTargets(64, pca).targets(inputs, (4, 4))
        expected = torch.from_numpy(exact[index, 0]).flatten(0, 1)
        cosines.append(torch.cosine_similarity(found, expected, dim=-1))
    assert least < torch.cat(cosines).mean() < 1 - 1e-7


def test_training_from_few_bytes_is_nearly_training_with_the_teacher(tmp_path, eight, teacher):
    settings = {"steps": 6, "global_batch_size": 8}
    run(tmp_path / "live", settings, pool=eight, teacher=teacher)
    cache = make_targets(tmp_path / "targets", eight, teacher, num_crops=6, dtype="int8", components=60)
    run(tmp_path / "cached", settings | CACHED, pool=eight, targets=cache)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), abs=3e-3)


def test_a_pca_equals_the_singular_value_decomposition():
    features = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(12.0)) + 3
    pca = Pca.fit(features.view(5, 10, 10, 12), 4)
    centred = features - features.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close((pca.components @ directions[:4].T).abs(), torch.eye(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(pca.kept, singular[:4].square().sum() / singular.square().sum())
    nearest = centred @ directions[:4].T @ directions[:4] + features.mean(0)
    torch.testing.assert_close(pca(pca.coordinates(features)), nearest, atol=1e-4, rtol=0)
    whole = Pca.fit([features], 12)
    torch.testing.assert_close(whole(whole.coordinates(features)), features, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="a PCA of 12 components needs at least as many patches, got 5"):
        Pca.fit([features[:5]], 12)
    for fit in (partial(Pca.fit, num_components=12), PhiS.fit):
        with pytest.raises(UserError, match="expected features of at least one image, got none"):
            fit([])


def test_an_interrupted_stage_with_a_pca_ends_as_an_unbroken_one(tmp_path, pool, teacher):
    settings = {"components": 16, "dtype": "int8", "samples_per_shard": 64, "pca_images": 20}
    whole = make_targets(tmp_path / "whole", pool, teacher, **settings)

    def stop(event: Event) -> None:
        if event.type == "progress" and event.data["done"] > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        targets_stage(**settings).run(context(tmp_path / "cut", stop, pool=pool, teacher=teacher))
    again = make_targets(tmp_path / "cut", pool, teacher, **settings)
    files = sorted(path.relative_to(whole.path) for path in whole.path.rglob("*.*"))
    assert files == sorted(path.relative_to(again.path) for path in again.path.rglob("*.*"))
    for file in files:
        assert (again.path / file).read_bytes() == (whole.path / file).read_bytes(), file


def test_more_components_than_channels_are_refused_before_anything_runs(tmp_path, pool, teacher):
    config = targets_stage(components=65)
    line = "components must be at most 64, the channels of the teacher's features; got 65"
    with pytest.raises(UserError, match=line):
        config.preflight(Preflight({}, {"teacher": teacher.path}))
    with pytest.raises(UserError, match=line):
        config.run(context(tmp_path, pool=pool, teacher=teacher))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_teacher_with_weights_that_are_not_finite_is_refused_in_the_preflight(tmp_path, teacher, number):
    clip = load_clip(teacher)
    clip.module.visual.ln_post.bias.data[3] = number
    broken = save_clip(clip, tmp_path)
    known = Preflight({}, {"teacher": broken.path})
    for config in (stage(), targets_stage()):
        with pytest.raises(UserError, match=r"visual\.ln_post\.bias contains NaN or infinity") as caught:
            config.preflight(known)
        assert "\n" not in str(caught.value)


def test_epochs_take_the_crops_in_turn_with_new_masks(tmp_path, eight, teacher):
    cache = make_targets(tmp_path, eight, teacher, num_crops=2, seed=3)
    held = load_teacher(teacher, Features())
    make = MakeViews(ImageTransform(32, scale=cache.crop_scale, flip=cache.flip))
    plain = TrainingData(open_dataset(eight), MakeWithTargets(make, CachedTensors(cache), 8), global_batch_size=8)
    data = MaskedData(plain, Masks(BlockMask(), (4, 4), 7))
    epochs = []
    for (batch,) in data.steps(0, 4, micro_batch_size=8):
        inputs = batch.inputs
        torch.testing.assert_close(held.features(inputs.images, (4, 4)), inputs.targets)
        epochs.append({key: (inputs.images[row], inputs.bool_mask[row]) for row, key in enumerate(batch.keys)})
    for key, (images, bool_mask) in epochs[0].items():
        assert torch.equal(images, epochs[2][key][0])
        assert torch.equal(epochs[1][key][0], epochs[3][key][0])
        assert not torch.equal(images, epochs[1][key][0])
        assert not torch.equal(bool_mask, epochs[2][key][1])


def test_an_epoch_that_ends_within_a_step_changes_the_crop_with_the_next_step(tmp_path, eight, teacher):
    cache = make_targets(tmp_path, eight, teacher, num_crops=2)
    make = MakeWithTargets(MakeViews(ImageTransform(32)), CachedTensors(cache), global_batch_size=6)
    sample, tensors = open_dataset(eight)[5], CachedTensors(cache)
    crops = []
    for step in range(6):  # they begin at samples 0, 6, 12, 18, 24, 30 of epochs of 8
        targets = make(sample, SampleDraw.of(0, step, 5)).targets.numpy()
        crops.append([np.array_equal(targets, tensors[5, crop].reshape(16, -1)) for crop in (0, 1)].index(True))
    assert crops == [0, 0, 1, 0, 1, 1]


def _spoil(pool: Pool, number: int) -> None:
    """Overwrite an image of an indexed pool."""
    tar, name = next(pool.path.rglob("*.tar")), f"{open_dataset(pool).key(number)}.jpg"
    with tarfile.open(tar) as opened:
        start = next(one for one in opened if one.name == name).offset_data
    with tar.open("r+b") as file:
        file.seek(start)
        file.write(b"no picture")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_stage_ends_as_an_unbroken_one(tmp_path, teacher, workers):
    pool = make_pool(tmp_path / "pool", num_samples=60)
    for number in (3, 30, 31, 32, 33, 59):  # 30 to 33 are a whole batch
        _spoil(pool, number)
    settings = {"num_crops": 2, "samples_per_shard": 25, "max_bad_fraction": 0.2}
    bad: dict[str, Counter[str]] = {}

    def make(name: str, stop_at: int | None = None, **runtime: Any) -> SampleCache:
        def stop(event: Event) -> None:
            if event.type == "progress" and event.data["done"] == stop_at:
                raise KeyboardInterrupt

        ctx = context(tmp_path / name, stop, pool=pool, teacher=teacher)
        bad[name] = ctx.bad
        return targets_stage(**settings, runtime={"device": "cpu", **runtime}).run(ctx)

    whole = make("whole")
    with pytest.raises(KeyboardInterrupt):
        make("cut", stop_at=37)
    assert [file.name for file in (tmp_path / "cut/work" / CACHE_FOLDER).glob("*.npy")] == ["00000.npy"]
    again = make("cut", workers=workers)
    assert whole.bad_samples == bad["whole"] == bad["cut"] == {"unreadable_image": 6}
    files = sorted(path.relative_to(whole.path) for path in whole.path.rglob("*.*"))
    assert files == sorted(path.relative_to(again.path) for path in again.path.rglob("*.*"))
    assert len(files) == 7
    for file in files:
        assert (again.path / file).read_bytes() == (whole.path / file).read_bytes(), file


def test_a_sample_without_targets_is_replaced_and_reported(tmp_path, teacher):
    pool = make_pool(tmp_path / "pool", num_samples=8)
    picture = open_dataset(pool)[2].image[:10]
    _spoil(pool, 2)
    cache = make_targets(tmp_path / "targets", pool, teacher, max_bad_fraction=0.2)
    (tar,) = pool.path.rglob("*.tar")
    tar.write_bytes(tar.read_bytes().replace(b"no picture", picture))  # it can be read again, but has no targets
    make = MakeWithTargets(MakeViews(ImageTransform(32)), CachedTensors(cache), global_batch_size=8)
    source = open_dataset(pool)
    ((batch,),) = TrainingData(source, make, global_batch_size=8, max_bad_fraction=0.9).steps(0, 1)
    assert batch.bad == [("unreadable_image", source.where(2))]
    assert len(batch.keys) == 8


def test_too_many_bad_samples_stop_the_stage(tmp_path, teacher):
    pool = make_pool(tmp_path / "pool", num_samples=8)
    _spoil(pool, 6)
    with pytest.raises(UserError, match=r"1 of 8 samples are bad: unreadable_image \(1\); more than max_bad_fraction"):
        make_targets(tmp_path / "targets", pool, teacher)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"teacher": None}, "give exactly one of teacher, targets and teachers"),
        ({"targets": "targets"}, "give exactly one of teacher, targets and teachers"),
        ({**CACHED, "augmentation": {"flip": 0.0}}, "augmentation is fixed by 'targets'; set it in the stage"),
        ({**CACHED, "target": {"layer": 3}}, "target is fixed by 'targets'"),
    ],
)
def test_teacher_and_targets_exclude_one_another(changes, line):
    with pytest.raises(ValidationError, match=line):
        stage(**changes)


def test_targets_that_do_not_fit_are_refused_in_the_preflight_and_in_the_run(tmp_path, eight, pool, teacher):
    cache = make_targets(tmp_path / "targets", eight, teacher)
    small = stage(**CACHED, image_size=16)
    here = {"targets": cache.path, "pool": eight.path}
    stage(**CACHED).preflight(Preflight({}, here))
    large = r"expected targets for 2 x 2 patches, the student's; got 4 x 4; set grid: \[2, 2\]"
    other = "expected targets made from data, .*; got targets made from"
    for config, known, line in [(small, here, large), (stage(**CACHED), here | {"pool": pool.path}, other)]:
        with pytest.raises(UserError, match=line):
            config.preflight(Preflight({}, known))
        inputs = {"targets": cache, "pool": Pool.load(known["pool"])}
        with pytest.raises(UserError, match=line):
            config.run(context(tmp_path / "run", **inputs))


def test_targets_that_are_to_be_made_must_fit_too():
    def preflight(maker: EvaTargets, **changes: Any) -> None:
        stage(**CACHED, **changes).preflight(Preflight({"targets": maker}, {}))

    preflight(targets_stage())
    preflight(targets_stage(), model="vit_pico_patch8_32")
    with pytest.raises(UserError, match="expected targets for 4 x 4 patches, the student's; got 8 x 4"):
        preflight(targets_stage(grid=[8, 4]))
    with pytest.raises(UserError, match="'targets' are made from 'another', expected data 'pool'"):
        preflight(targets_stage(data="another"))


def test_preflight_of_targets_checks_an_existing_teacher(teacher):
    known = Preflight({}, {"teacher": teacher.path})
    targets_stage().preflight(known)
    with pytest.raises(UserError, match="layer 9 is not one of its 2 blocks"):
        targets_stage(target={"layer": 9}).preflight(known)


def test_a_cache_fits_students_of_other_sizes_with_equal_grids(tmp_path, eight, teacher):
    cache = make_targets(tmp_path / "targets", eight, teacher)
    settings = {"model": {"architecture": STUDENT, "patch_size": 16}, "image_size": 64, "steps": 2}
    run(tmp_path / "run", settings | CACHED, pool=eight, targets=cache)
    assert len(losses(tmp_path / "run")) == 2


def test_every_field_has_a_description():
    fields = EvaTargets.model_fields
    assert [name for name in fields if name != "kind" and not fields[name].description] == []


def test_a_seed_below_zero_is_refused() -> None:
    settings = {"name": "targets", "data": "pool", "teacher": "teacher", "grid": [4, 4]}
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        EvaTargets.model_validate({**settings, "seed": -1})
