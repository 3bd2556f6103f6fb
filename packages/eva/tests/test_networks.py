"""Training without masks, and students that are networks of feature maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from eva_toy import STUDENT, batch_of, context, losses, make_task, random_inputs, run, stage
from vfm.models import (
    KeyReport,
    TransferRules,
    build_vision,
    load_clip,
    load_vision,
    read_masked_modelling,
    transfer_weights,
)
from vfm.plugin import Preflight, UserError
from vfm_eva import EvaPretrain
from vfm_eva.pretrain.building import build_student, left_out
from vfm_eva.pretrain.held_out_stages import MaskedPatches
from vfm_eva.pretrain.objective import Objective
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.teacher import Teacher

SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
NETWORKS: dict[str, dict[str, Any]] = {
    "convnext_atto": SMALL,
    "repvit_m0_9": {"embed_dim": (8, 16, 24, 32), "depth": (1, 1, 1, 1)},
    "fastvit_t8": {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)},
    "mobilenetv3_small_050": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1), "img_size": 32, "window_size": 4},
}
CONVNEXT = {"architecture": "convnext_atto", **SMALL}


@pytest.fixture
def clip_teacher(teacher) -> Teacher:
    clip = load_clip(teacher)
    return Teacher(clip, clip.preprocess)


def unmasked(teacher: Teacher, name: str, class_weight: float = 0.0, **arguments: Any) -> EvaTask:
    student = build_vision(name, num_classes=0, seed=0, **arguments)
    return EvaTask(student, [Objective(teacher, class_weight=class_weight)], is_masked=False).eval()


def test_without_masks_every_patch_is_predicted_from_the_whole_image(clip_teacher) -> None:
    task, inputs = unmasked(clip_teacher, STUDENT), random_inputs()
    loss, _ = task(inputs)
    student: Any = task.student
    tokens = student.fc_norm(student.forward_features(task.preprocess.pixels(inputs.images)))[:, 1:]
    target = clip_teacher.features(inputs.images, (4, 4))
    plain = -F.cosine_similarity(task.objectives[0].head(tokens), target, dim=-1).mean()
    torch.testing.assert_close(loss, plain)
    trained = [weight for weight in task.parameters() if weight.requires_grad]
    torch.testing.assert_close(torch.autograd.grad(loss, trained), torch.autograd.grad(plain, trained))
    assert not task.mask_token.requires_grad
    assert torch.equal(task(replace(inputs, bool_mask=~inputs.bool_mask))[0], loss)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_networks_map_is_resized_to_the_teachers_grid(clip_teacher, name: str) -> None:
    task, inputs = unmasked(clip_teacher, name, class_weight=0.5, **NETWORKS[name]), random_inputs()
    loss, _ = task(inputs)
    student: Any = task.student
    features = student.forward_features(task.preprocess.pixels(inputs.images))
    planes = features.movedim(-1, 1) if name.startswith("swin") else features
    assert planes.shape[-2:] == (1, 1)
    head = task.objectives[0].head
    resized = F.interpolate(planes, size=(4, 4), mode="bilinear", antialias=True)
    predicted = torch.stack([head(resized[:, :, row, column]) for row in range(4) for column in range(4)], dim=1)
    patches, image = clip_teacher.patches_and_image(inputs, (4, 4))
    of_patches = -F.cosine_similarity(predicted, patches, dim=-1).mean()
    pooled = task.objectives[0].class_head(student.forward_head(features, pre_logits=True))
    of_image = -F.cosine_similarity(pooled, image, dim=-1).mean()
    torch.testing.assert_close(loss, of_patches + 0.5 * of_image)


@pytest.mark.parametrize("class_weight", [0.0, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_trained_weight_of_a_network_has_a_gradient(clip_teacher, name: str, class_weight: float) -> None:
    task = unmasked(clip_teacher, name, class_weight, **NETWORKS[name])
    larger = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    inputs = random_inputs()
    if not name.startswith("swin"):
        inputs = replace(inputs, images=larger, teacher_images=inputs.images)
    task(inputs)[0].backward()
    left = [name for name, weight in task.named_parameters() if weight.requires_grad and weight.grad is None]
    assert left == []  # DDP would wait for them forever
    frozen = [name for name, weight in task.student.named_parameters() if not weight.requires_grad]
    assert all(class_weight == 0 and name.startswith(("head.", "conv_head.")) for name in frozen)


def test_without_masks_micro_batches_add_up_to_the_batch(clip_teacher) -> None:
    task, inputs = unmasked(clip_teacher, "convnext_atto", **SMALL), random_inputs()
    whole = task(inputs)[0].item()
    parts = [
        batch_of(replace(inputs, images=inputs.images[rows], bool_mask=inputs.bool_mask[rows]))
        for rows in (slice(0, 1), slice(1, 4))
    ]
    metrics = task.accumulate(lambda batch: task(batch.inputs), parts, lambda loss: loss.backward(), lambda index: None)
    assert metrics["loss"].item() == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize(("model", "size"), [(CONVNEXT, 48), (STUDENT, 32)])
def test_a_student_without_masks_is_trained_saved_evaluated_and_started_from(
    tmp_path: Path, pool, teacher, model, size: int
) -> None:
    settings = {"model": model, "image_size": size, "mask": {"ratio": 0}, "steps": 6, "lr": 3e-3}
    made = run(tmp_path / "first", settings, pool=pool, teacher=teacher)
    assert losses(tmp_path / "first")[-1] < losses(tmp_path / "first")[0]
    assert load_vision(made).pretrained_cfg["input_size"][-1] == size or model == STUDENT
    assert made.image_size == size
    assert set(read_masked_modelling(made.path)) == {"head.weight", "head.bias"}
    evaluation = MaskedPatches.model_validate({"name": "e", "data": "pool", "models": ["eva"], "teacher": "teacher"})
    report = evaluation.run(context(tmp_path / "report", eva=made, teacher=teacher, pool=pool))
    going_on = {"start": "start", "mask": {"ratio": 0}, "steps": 1, "lr": 0, "schedule": {"min_lr": 0}}
    fresh = stage().model_dump(exclude={"model"}, exclude_unset=True)
    again = EvaPretrain.model_validate(fresh | going_on).run(
        context(tmp_path / "second", pool=pool, teacher=teacher, start=made)
    )
    before, after = load_vision(made).state_dict(), load_vision(again).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" not in name)
    assert report.metrics[0].value == pytest.approx(-losses(tmp_path / "first")[-1], abs=0.2)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_classifier_starts_a_network_without_its_classes(name: str) -> None:
    weights = build_vision(name, num_classes=7, seed=1, **NETWORKS[name]).state_dict()
    student = build_vision(name, num_classes=0, seed=0, **NETWORKS[name])
    rules = TransferRules(left_out(student, weights), {}, where="start")
    transfer_weights(weights, student, rules, report := KeyReport())
    assert report.dropped
    assert all(torch.equal(weights[key], value) for key, value in student.state_dict().items())


def test_the_head_of_a_masked_training_goes_on_without_masks(clip_teacher) -> None:
    before = make_task(clip_teacher)
    after = unmasked(clip_teacher, STUDENT)
    assert after.load_masked_modelling(before.masked_modelling())
    assert torch.equal(after.objectives[0].head.weight, before.objectives[0].head.weight)
    assert not before.load_masked_modelling(after.masked_modelling())  # it needs a mask token


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": CONVNEXT}, r"ConvNeXt has no patch tokens that could be masked; set mask: \{ratio: 0\}"),
        ({"model": "naflexvit_base_patch16_gap", "mask": {"ratio": 0}}, "NaFlexVit: expected a feature map"),
        ({"model": CONVNEXT, "mask": {"ratio": 0}, "student": {"init": "mae"}}, "mae is for vision transformers"),
        (
            {"model": CONVNEXT, "mask": {"ratio": 0}, "student": {"patch_embed_grad": 0.1}},
            "patch_embed_grad: ConvNeXt has no patch embedding",
        ),
    ],
)
def test_mistakes_are_one_line_in_the_preflight(teacher, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        stage(**changes).preflight(Preflight({}, {"teacher": teacher.path}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"encode": "visible"}, {"target": {"type": "pixels"}, "teacher": None}])
def test_what_needs_masks_is_refused_without_them(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"needs masks: expected a mask\.ratio above 0"):
        stage(mask={"ratio": 0, "type": "random"}, **changes)


def test_a_drop_path_that_a_network_lacks_is_named_only_if_it_was_given() -> None:
    repvit = {"model": {"architecture": "repvit_m0_9", **NETWORKS["repvit_m0_9"]}, "mask": {"ratio": 0}}
    build_student(stage(**repvit))
    with pytest.raises(UserError, match="drop_path_rate"):
        build_student(stage(**repvit, student={"drop_path": 0.1}))
