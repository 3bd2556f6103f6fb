"""Several teachers as RADIO trains them: sizes in turn, mosaics, balanced losses, and a Gram anchor."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from eva_toy import STUDENT, batch_of, losses, random_inputs, run, stage
from vfm.models import build_vision, load_clip, load_vision, save_vision, vision_preprocess
from vfm.plugin import Preflight, UserError, VisionCheckpoint
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.objective import Objective
from vfm_eva.pretrain.pretrain import build_task
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.images import EvaInputs, TeacherInputs
from vfm_eva.targets.losses import gram_loss
from vfm_eva.targets.mosaic import cut_mosaics, join_mosaics, tiles_per_side
from vfm_eva.targets.phi_s import GlobalScale
from vfm_eva.targets.teacher import Teacher

UNMASKED: dict[str, Any] = {"mask": {"ratio": 0}}
MOSAIC: dict[str, Any] = {"teacher": "large", "target": {"projected": False, "mosaic": True}}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> VisionCheckpoint:
    """Save an encoder of 64 pixels and 8 x 8 patches."""
    return save_vision(build_vision("eva02_pico_patch8_64", num_classes=0, seed=5), tmp_path_factory.mktemp("large"))


def noise(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def test_gram_loss_is_that_of_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, target = torch.randn(3, 4, 5, generator=generator), torch.randn(3, 4, 7, generator=generator)
    counted = torch.tensor([[True, True, True, True], [True, False, True, False], [False] * 4])
    total = torch.zeros(())
    for image in range(3):
        rows = counted[image].nonzero().flatten().tolist()
        squares = [
            (F.cosine_similarity(tokens[image, i], tokens[image, j], dim=0)
             - F.cosine_similarity(target[image, i], target[image, j], dim=0)).square()
            for i in rows for j in rows
        ]  # fmt: skip
        total += sum(squares, torch.zeros(())) / max(1, len(squares)) * len(rows)
    torch.testing.assert_close(gram_loss(tokens, target, counted), total / counted.sum())


def test_gram_loss_ignores_rotations_and_lengths() -> None:
    tokens = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0]
    every = torch.ones(2, 6, dtype=torch.bool)
    assert gram_loss(tokens, 3 * tokens @ rotation, every) < 1e-12
    assert gram_loss(tokens, tokens.flip(1), every) > 1e-3


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_tiles_cut_from_mosaics_are_the_images(side: int, count: int) -> None:
    images = noise(count, 6)
    mosaics = join_mosaics(images, side)
    assert mosaics.shape == (-(-count // side**2), 3, 6 * side, 6 * side)
    pixels = mosaics.permute(0, 2, 3, 1).flatten(1, 2).float()  # a "patch" of one pixel
    tiles, grid = cut_mosaics(pixels, (6 * side, 6 * side), side, count)
    assert grid == (6, 6)
    assert torch.equal(tiles, images.permute(0, 2, 3, 1).flatten(1, 2).float())


def test_a_mosaic_has_the_features_of_one_large_image(large) -> None:
    encoder = load_vision(large)
    teacher = Teacher(encoder, vision_preprocess(encoder), projected=False, mosaic=True)
    images = noise(5, 32)
    features = teacher.features(images, (4, 4))
    whole = torch.cat([torch.cat([images[0], images[1]], dim=2), torch.cat([images[2], images[3]], dim=2)], dim=1)
    plain = Teacher(encoder, vision_preprocess(encoder), projected=False).features(whole[None], (8, 8))
    planes = plain.reshape(8, 8, -1)
    torch.testing.assert_close(features[1].reshape(4, 4, -1), planes[:4, 4:])
    torch.testing.assert_close(features[2].reshape(4, 4, -1), planes[4:, :4])
    assert features.shape == (5, 16, 64)
    assert [tiles_per_side(size, 64) for size in (16, 32, 48, 64, 96)] == [4, 2, 1, 1, 1]


def test_variance_divides_centred_features_by_one_number() -> None:
    features = torch.randn(3, 200, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 5) + 4
    scale = GlobalScale.fit(features)
    rows = features.flatten(0, 1)
    centred = rows - rows.mean(0)
    torch.testing.assert_close(scale(rows), centred / centred.square().mean().sqrt(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale.inverse(scale(features)), features, rtol=1e-4, atol=1e-4)


def radio_task(teacher: Any, large: VisionCheckpoint, **student: Any) -> tuple[EvaTask, Teacher, Teacher]:
    """Build a task of a CLIP teacher for images of 32 pixels and a mosaic teacher, both with a Gram anchor."""
    clip, encoder = load_clip(teacher), load_vision(large)
    one = Teacher(clip, clip.preprocess)
    two = Teacher(encoder, vision_preprocess(encoder), projected=False, mosaic=True)
    objectives = [
        Objective(one, weight=0.5, class_weight=2.0, name="clip", gram_weight=3.0),
        Objective(two, phi_s=GlobalScale.fit(two.features(noise(8, 32, 9), (4, 4))), name="large", gram_weight=0.1),
    ]
    arguments = {"num_classes": 0, "seed": 0, "image_size": 64, "dynamic_img_size": True, "global_pool": "token"}
    task = EvaTask(build_vision(STUDENT, **arguments, **student), objectives, is_masked=False)
    return task.eval(), one, two


@pytest.mark.parametrize("size", [32, 64])
def test_the_loss_at_each_size_is_the_sum_of_plain_parts(teacher, large, size: int) -> None:
    task, one, two = radio_task(teacher, large)
    images, for_clip = noise(4, size), noise(4, 32, 1)
    inputs = EvaInputs(images, torch.zeros(4, 64, dtype=torch.bool), for_clip, others=(TeacherInputs(images),))
    loss, metrics = task(inputs)
    grid = (size // 8, size // 8)
    student: Any = task.student
    tokens = student.forward_features(task.preprocess.pixels(images))
    patches = tokens[:, 1:]
    clip_patches, clip_image = one.patches_and_image(replace(inputs, others=()), grid)
    large_patches = two.features(images, grid)
    first, second = task.objectives
    every = torch.ones(patches.shape[:2], dtype=torch.bool)
    expected = 0.5 * (
        -F.cosine_similarity(first.head(patches), clip_patches, dim=-1).mean()
        - 2 * F.cosine_similarity(first.class_head(tokens[:, 0]), clip_image, dim=-1).mean()
        + 3 * gram_loss(patches, clip_patches, every)
    )
    expected = expected + F.mse_loss(second.head(patches), second.phi_s(large_patches))
    expected = expected + 0.1 * gram_loss(patches, large_patches, every)
    torch.testing.assert_close(loss, expected)
    assert {"gram_loss_clip", "gram_loss_large", "class_loss_clip", "loss_large"} <= set(metrics)


def test_a_step_is_the_same_for_any_micro_batches(teacher, large) -> None:
    task, _, _ = radio_task(teacher, large)
    task.objectives = torch.nn.ModuleList([task.objectives[0]])  # a mosaic depends on its neighbours
    inputs = EvaInputs(noise(4, 64), torch.zeros(4, 64, dtype=torch.bool), noise(4, 32, 1))
    whole = task(inputs)[0].item()
    parts = [
        batch_of(EvaInputs(inputs.images[rows], inputs.bool_mask[rows], inputs.teacher_images[rows]))
        for rows in (slice(0, 3), slice(3, 4))
    ]
    metrics = task.accumulate(lambda batch: task(batch.inputs), parts, lambda loss: loss.backward(), lambda index: None)
    assert metrics["loss"].item() == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(
    "model", [STUDENT, {"architecture": "convnext_atto", "depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}]
)
def test_three_teachers_on_two_sizes_train_one_student(tmp_path: Path, pool, teacher, large, model) -> None:
    settings = {
        "teacher": None,
        "teachers": [
            {"teacher": "teacher", "class_weight": 1.0, "gram_weight": 0.5},
            {**MOSAIC, "loss": "phi_s", "statistics_images": 16},
            {"teacher": "other", "target": {"projected": False}, "loss": "variance", "statistics_images": 16},
        ],
        "model": model,
        "image_sizes": [32, 64],
        "steps": 20,
        **UNMASKED,
    }
    inputs = {"pool": pool, "teacher": teacher, "large": large, "other": large}
    made = run(tmp_path / "whole", settings, **inputs)
    curve = losses(tmp_path / "whole")
    assert all(map(math.isfinite, curve))
    assert model != STUDENT or sum(curve[-4:]) < sum(curve[:4])
    assert made.image_size == 64
    assert (made.path / "pictures" / "cosine-0.png").is_file()
    student = load_vision(made).eval()
    with torch.no_grad():
        assert all(student(torch.zeros(1, 3, size, size)).isfinite().all() for size in (32, 64))
    preflight = Preflight({}, {name: artifact.path for name, artifact in inputs.items() if name != "pool"})
    stage(**settings).preflight(preflight)


def test_sizes_and_mosaics_that_do_not_fit_are_one_line(teacher, large) -> None:
    paths = {"teacher": teacher.path, "large": large.path}
    odd = stage(image_sizes=[36, 32], **UNMASKED)
    with pytest.raises(UserError, match="expected multiples of the patch size 8, got 36"):
        odd.preflight(Preflight({}, paths))
    encoder = load_vision(large)
    preprocess = vision_preprocess(encoder)
    tiled = Teacher(encoder, preprocess, projected=False, mosaic=True)
    with pytest.raises(UserError, match="3 x 3 images of 20 pixels do not divide the teacher's 8 x 8 patches"):
        tiled.preprocess_for(preprocess.model_copy(update={"image_size": 20}))
    for changes, line in [
        ({"image_sizes": [32], "image_size": 32, **UNMASKED}, "exclude each other"),
        ({"image_sizes": [32]}, "without masks"),
        (
            {"teacher": None, "teachers": [{**MOSAIC, "class_weight": 1.0}]},
            "a mosaic has no feature of each whole image",
        ),
    ]:
        with pytest.raises(ValidationError, match=line):
            stage(**changes)


def test_a_student_of_several_sizes_has_the_features_of_one_loaded_at_the_size(tmp_path: Path, teacher) -> None:
    config = stage(image_sizes=[32, 64], **UNMASKED)
    clip = load_clip(teacher)
    task = build_task(config, build_student(config), Teacher(clip, clip.preprocess)).eval()
    fixed = load_vision(task.export(tmp_path), image_size=32, dynamic_img_size=False).eval()
    images = random_inputs().images
    pixels = task.preprocess.pixels(images)
    with torch.no_grad():
        torch.testing.assert_close(task.student(pixels), fixed(pixels), rtol=1e-4, atol=1e-5)
    assert task.grid_of(images) == (4, 4)
