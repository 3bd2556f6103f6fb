"""Images of their own aspect ratio in rows: packing, grids, and the loss and gradients of padded training."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from padded import padded_loss
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from eva_toy import losses, make_teacher, run, run_in_processes, stage
from vfm.base import decisive_settings
from vfm.data import Batch, SampleDraw, to_tensor
from vfm.models import build_vision, load_clip, load_vision
from vfm.plugin import Preflight, UserError
from vfm_eva.pretrain.naflex.images import (
    MakeStrips,
    NativeCrop,
    SampleStrips,
    StripOf,
    images_by_grid,
    native_grid,
    patch_strip,
)
from vfm_eva.pretrain.naflex.packing import pack_rows
from vfm_eva.pretrain.naflex.rows import RowInputs, Rows
from vfm_eva.pretrain.objective import Objective
from vfm_eva.pretrain.parts import BlockExactMask, BlockMask, RandomMask
from vfm_eva.pretrain.row_task import RowTask, row_features
from vfm_eva.pretrain.students.decoder import MaskDecoder
from vfm_eva.pretrain.students.masking import visible_only as encoding_visible
from vfm_eva.targets.teacher import Teacher

SIZES = [(64, 40), (30, 90), (64, 64), (100, 60), (40, 64), (16, 20)]  # width and height
NAFLEX: dict[str, Any] = {"naflex": {"seq_lens": [12, 20], "row_tokens": 64}}
STUDENTS: dict[str, dict[str, Any]] = {
    "EVA-02": {"architecture": "eva02_pico_patch8_32"},
    "ViT": {
        "architecture": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2,
        "num_heads": 2, "reg_tokens": 2,
    },
}  # fmt: skip


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def samples(crop: NativeCrop, teacher: StripOf | None = None) -> Batch[SampleStrips]:
    own = StripOf(8, "bicubic")
    make = MakeStrips(crop, own, (teacher or own,))
    draws = [SampleDraw.of(0, 3, number) for number in range(len(SIZES))]
    uses = [make.use(image(*size, number), draws[number]) for number, size in enumerate(SIZES)]
    return Batch(make.join(uses, draws), [str(number) for number in range(len(SIZES))])


def rows_of(budget: int, mask: Any = None, prefix: int = 1, *, visible_only: bool = False) -> list[Batch[RowInputs]]:
    batch = samples(NativeCrop(8, (12, 20), (0.3, 1.0), 0.5))
    mask = mask or BlockExactMask()
    return Rows(mask.ratio, mask.build, prefix, budget, visible_only).pack([batch])


def task_of(name: str, teacher: Any, **arguments: Any) -> RowTask:
    clip = load_clip(teacher)
    student = build_vision(STUDENTS[name], num_classes=0, seed=0, dynamic_img_size=True, global_pool="avg")
    task = RowTask(student, [Objective(Teacher(clip, clip.preprocess))], **arguments)
    generator = torch.Generator().manual_seed(1)
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return task.eval()


def gradients(task: RowTask, loss: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    return [grad for grad in torch.autograd.grad(loss, trained, allow_unused=True) if grad is not None]


def test_every_sequence_is_in_one_row_in_order_and_no_row_is_over_budget() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        budget = draw.randint(1, 60)
        lengths = [draw.randint(1, budget) for _ in range(draw.randint(0, 40))]
        rows = pack_rows(lengths, budget)
        assert rows == pack_rows(lengths, budget)
        assert sorted(chain.from_iterable(rows)) == list(range(len(lengths)))
        assert all(row == sorted(row) for row in rows)
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)
        totals = [sum(lengths[number] for number in row) for row in rows]
        assert all(total <= budget for total in totals)
        assert len(rows) <= max(1.7 * sum(lengths) / budget + 1, 2 * sum(lengths) / budget)
    assert pack_rows([5, 4, 5, 1, 2], 9) == [[0, 1], [2, 3, 4]]
    with pytest.raises(ValueError, match="at most 8 tokens, got 9"):
        pack_rows([3, 9], 8)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (224, 224, (14, 14)), (448, 448, (16, 16)), (500, 375, (13, 18)), (100, 60, (3, 6)), (10, 10, (2, 2)),
        (5000, 20, (2, 128)), (30, 90000, (128, 2)),
    ],
)  # fmt: skip
def test_grids_keep_the_aspect_ratio_within_the_number_of_patches(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    assert native_grid(width, height, 16, 256) == expected


def test_a_strip_has_the_patches_row_by_row_and_gives_the_images_back() -> None:
    first, second, third = (to_tensor(image(*size)) for size in ((24, 16), (16, 24), (24, 16)))
    strips = [patch_strip(part, 8) for part in (first, second, third)]
    assert torch.equal(strips[0][:, :, 24:32], first[:, 8:16, :8])  # the patch below the first
    batches = images_by_grid(torch.cat(strips, dim=2), [(2, 3), (3, 2), (2, 3)])
    assert torch.equal(batches[2, 3], torch.stack([first, third]))
    assert torch.equal(batches[3, 2], second[None])


def test_crops_have_the_aspect_ratio_and_area_that_are_asked_for() -> None:
    crop = NativeCrop(8, (16, 32), scale=(0.25, 1.0), flip=0.5)
    areas, patches = [], set()
    for seed in range(200):
        part, grid = crop(image(90, 60), seed)
        assert part.width / part.height == pytest.approx(1.5, rel=0.03)
        areas.append(part.width * part.height / 5400)
        patches.add(grid[0] * grid[1] > 16)
    assert 0.24 < min(areas) < 0.3 < 0.9 < max(areas) <= 1
    assert patches == {True, False}
    whole, _ = NativeCrop(8, (16,), scale=None, flip=0)(image(90, 60), 0)
    assert whole.size == (90, 60)


@pytest.mark.parametrize("mask", [BlockMask(), BlockExactMask(), RandomMask(ratio=0.6), BlockMask(ratio=0)])
def test_masks_hide_the_same_fraction_of_every_image(mask: Any) -> None:
    for batch in rows_of(64, mask):
        inputs = batch.inputs
        lengths = [rows * columns for rows, columns in inputs.grids]
        assert inputs.bool_mask.shape == (1, sum(lengths))
        for part in inputs.bool_mask[0].split(lengths):
            expected = round(mask.ratio * len(part))
            assert int(part.sum()) == expected if mask.equal_counts else int(part.sum()) <= expected
        expected_index = inputs.bool_mask[0].nonzero()[:, 0] if mask.ratio else torch.arange(sum(lengths))
        assert torch.equal(inputs.index, expected_index)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("is_masked", [True, False])
def test_a_row_has_the_loss_and_gradients_of_a_padded_batch(teacher, name: str, is_masked: bool) -> None:
    task = task_of(name, teacher, is_masked=is_masked)
    prefix: Any = task.student.num_prefix_tokens
    mask = BlockExactMask(ratio=0.4) if is_masked else BlockMask(ratio=0)
    (batch,) = rows_of(400, mask, prefix)
    loss, metrics = task(batch.inputs)
    features = row_features(task.objectives[0].teacher, batch.inputs.strip_of(0), batch.inputs.grids)
    expected = padded_loss(task, batch.inputs, features)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(task, loss), gradients(task, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())
    assert len({tuple(grid) for grid in batch.inputs.grids}) > 3
    assert metrics["masked_share"] > 0 if is_masked else metrics["masked_share"] == 0


@pytest.mark.parametrize("name", STUDENTS)
def test_a_row_of_visible_patches_has_the_loss_and_gradients_of_each_image_alone(teacher, name: str) -> None:
    size: dict[str, int] = {"width": 16, "depth": 2, "num_heads": 2}
    width, prefix = {"EVA-02": (64, 1), "ViT": (32, 3)}[name]
    task = task_of(name, teacher, num_masked=7, decoder=MaskDecoder(width, (4, 4), prefix, **size))
    student, decoder = task.student, task.decoder
    (batch,) = rows_of(400, RandomMask(ratio=0.6), prefix, visible_only=True)
    inputs = batch.inputs
    loss, _ = task(inputs)
    assert inputs.strips[0] is not None
    pixels = task.preprocess.pixels(inputs.strips[0])[0]
    masks = inputs.bool_mask[0].split([rows * columns for rows, columns in inputs.grids])
    predictions = []
    for grid, strip, mask in zip(inputs.grids, pixels.split([8 * len(mask) for mask in masks], 2), masks, strict=True):
        (one,) = images_by_grid(strip, [grid]).values()
        index = (~mask).nonzero().T
        with encoding_visible(student, index):
            tokens = student.fc_norm(student.forward_features(one))
        alone = MaskDecoder(width, grid, prefix, **size)
        weights = {key: value for key, value in decoder.named_parameters() if key != "pos_embed"}
        decoded = torch.func.functional_call(alone, weights, (tokens, index, task.mask_token))
        predictions.append(task.objectives[0].head(decoded[0, mask]))
    features = row_features(task.objectives[0].teacher, inputs.strip_of(0), inputs.grids)
    expected = -torch.cosine_similarity(torch.cat(predictions), features[0, inputs.index], dim=-1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(task, loss), gradients(task, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_rows_of_visible_patches_hold_more_images_and_train(tmp_path: Path, pool, teacher) -> None:
    mask = RandomMask(ratio=0.6)
    assert len(rows_of(24, mask, visible_only=True)) < len(rows_of(24, mask))
    settings = {"encode": "visible", "mask": {"type": "random", "ratio": 0.6}, "steps": 2, **NAFLEX}
    run(tmp_path, settings | {"decoder": {"width": 16, "num_heads": 2}}, pool=pool, teacher=teacher)
    assert len(losses(tmp_path)) == 2


def test_how_images_are_packed_changes_neither_loss_nor_gradients(teacher) -> None:
    task = task_of("EVA-02", teacher)
    results = []
    for budget in (400, 48, 24):
        task.zero_grad()
        rows = rows_of(budget)
        metrics = task.accumulate(lambda row: task(row.inputs), rows, torch.autograd.backward, lambda index: None)
        grads = [parameter.grad.clone() for parameter in task.parameters() if parameter.grad is not None]
        results.append((len(rows), [metrics["loss"], *grads]))
    assert [number for number, _ in results] == [1, 2, 4]
    for _, values in results[1:]:
        torch.testing.assert_close(values, results[0][1], rtol=1e-3, atol=1e-5)


def test_a_teacher_has_the_features_of_each_image_alone_at_its_own_patch_size(tmp_path: Path) -> None:
    clip = load_clip(make_teacher(tmp_path, {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16,
        "width": 32, "layers": 2, "head_width": 16}, "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16,
        "heads": 1, "layers": 1}}))  # fmt: skip
    teacher = Teacher(clip, clip.preprocess)
    strip_of = StripOf.of(teacher.preprocess, teacher.grid)
    assert strip_of.patch_size == 16
    batch = samples(NativeCrop(8, (20,), scale=None, flip=0), strip_of)
    (row,) = Rows(0, BlockMask().build, 1, 400).pack([batch])
    features = row_features(teacher, row.inputs.strip_of(0), row.inputs.grids)[0]
    parts = features.split([rows * columns for rows, columns in row.inputs.grids])
    for size, number, (rows, columns) in zip(SIZES, range(6), row.inputs.grids, strict=True):
        resized = image(*size, number).resize((16 * columns, 16 * rows), Image.Resampling.BICUBIC)
        alone = teacher.features_at_size(to_tensor(resized)[None])[0]
        torch.testing.assert_close(parts[number], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STUDENTS)
def test_trainings_with_any_budget_have_the_same_losses_and_export_an_encoder(
    tmp_path: Path, pool, teacher, name: str
) -> None:
    settings = {"model": STUDENTS[name], **NAFLEX}
    checkpoint = run(tmp_path / "rows", settings, pool=pool, teacher=teacher)
    run(tmp_path / "row", settings | {"naflex": {"seq_lens": [12, 20]}}, pool=pool, teacher=teacher)
    assert losses(tmp_path / "rows") == pytest.approx(losses(tmp_path / "row"), abs=1e-4)
    assert len(losses(tmp_path / "rows")) == 6
    assert torch.isfinite(load_vision(checkpoint)(torch.zeros(1, 3, 32, 32))).all()


def test_two_processes_with_different_numbers_of_rows_have_the_losses_of_one(tmp_path: Path, pool, teacher) -> None:
    settings = {"steps": 3, **NAFLEX, "naflex": {"seq_lens": [4, 20], "row_tokens": 21}}
    run(tmp_path / "one", settings, pool=pool, teacher=teacher)
    both = run_in_processes(tmp_path / "two", settings, pool, teacher)
    assert losses(both) == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_teachers_of_different_losses_train_a_student_on_rows(tmp_path: Path, pool, teacher) -> None:
    teachers = [{"teacher": "teacher", "loss": "phi_s", "statistics_images": 16}]
    run(tmp_path, {"teacher": None, "teachers": teachers, "steps": 2, **NAFLEX}, pool=pool, teacher=teacher)
    assert len(losses(tmp_path)) == 2


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image_sizes": [32], "mask": {"ratio": 0}}, "set naflex.seq_lens"),
        ({"student": {"drop_path": 0.1}}, "naflex does not support student.drop_path; naflex.row_tokens bounds"),
        ({"micro_batch_size": 4}, "naflex does not support micro_batch_size"),
        ({"teacher": None, "targets": "stored"}, "naflex needs the features of a teacher that runs"),
        ({"teacher": None, "teachers": [{"teacher": "t", "class_weight": 1}]}, "leave out class_weight"),
    ],
)
def test_settings_that_rows_exclude_are_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        stage(**NAFLEX, **changes)


def test_students_and_rows_that_do_not_fit_are_one_line(teacher) -> None:
    paths = {"teacher": teacher.path}
    short = stage(naflex={"seq_lens": [64], "row_tokens": 64})
    with pytest.raises(UserError, match=r"naflex\.row_tokens: expected at least 65, the tokens of an image, got 64"):
        short.preflight(Preflight({}, paths))
    stage(**NAFLEX).preflight(Preflight({}, paths))
    convolutions = stage(model="convnext_atto", mask={"ratio": 0}, **NAFLEX)
    with pytest.raises(UserError, match="naflex: expected a VisionTransformer or Eva of timm, got ConvNeXt"):
        convolutions.preflight(Preflight({}, paths))


def test_settings_without_rows_keep_the_identity_of_earlier_artifacts() -> None:
    assert "naflex" not in decisive_settings(stage())
    # Like `micro_batch_size`, the length of rows changes no result, so a run goes on with another one.
    assert decisive_settings(stage(**NAFLEX))["naflex"] == {"seq_lens": [12, 20]}
