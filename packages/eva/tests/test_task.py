"""The loss is EVA's, its teacher is unchanged, and masked patches stay hidden."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eva_toy import NUM_MASKED, STUDENT, make_task, random_inputs
from vfm.data import map_tensors
from vfm.models import build_clip, build_vision, load_clip, vision_preprocess
from vfm.plugin import AdamW, UserError
from vfm.train import build_optimizer
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.patch_target import resample_grid
from vfm_eva.targets.teacher import Teacher
from vfm_kernels import block_mask, block_mask_exact, random_mask

MASKS = [block_mask, block_mask_exact, random_mask]


@pytest.fixture
def clip_teacher(teacher) -> Teacher:
    clip = load_clip(teacher)
    return Teacher(clip, clip.preprocess)


def restated_loss(task: EvaTask, images: Tensor, bool_mask: Tensor) -> Tensor:
    """Return the loss of EVA's ten lines, written out (arXiv:2211.07636; `forward` of its pre-training model)."""
    student: Any = task.student
    tokens = student.patch_embed(task.preprocess.pixels(images))
    w = bool_mask.unsqueeze(-1).float()
    tokens = tokens * (1 - w) + task.mask_token * w
    tokens = torch.cat([student.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + student.pos_embed
    rope = {"rope": student.rope.get_embed()} if hasattr(student, "rope") else {}
    for block in student.blocks:
        tokens = block(tokens, **rope)
    tokens = student.fc_norm(student.norm(tokens))[:, 1:]
    prediction = task.objectives[0].head(tokens[bool_mask])
    visual: Any = task.teacher.module
    visual.output_tokens = True  # open_clip's own: all patch tokens after the final norm
    _, patch_tokens = visual(task.teacher.preprocess.pixels(images))
    target = (patch_tokens @ visual.proj)[bool_mask]
    return -torch.nn.CosineSimilarity(dim=-1)(prediction.float(), target.float()).mean()


@pytest.mark.parametrize("student", [STUDENT, "vit_pico_patch8_32"])
@pytest.mark.parametrize("masks", MASKS)
def test_loss_and_gradients_are_those_of_evas_ten_lines(clip_teacher, masks, student):
    task, inputs = make_task(clip_teacher, student), random_inputs(masks)
    loss, metrics = task(inputs)
    plain = restated_loss(task, inputs.images, inputs.bool_mask)
    torch.testing.assert_close(loss, plain)
    parameters = list(task.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters))
    assert metrics["masked_share"] == inputs.bool_mask.float().mean()


def test_every_masked_patch_has_the_same_weight_with_masks_of_unequal_counts(clip_teacher):
    task, inputs = make_task(clip_teacher), random_inputs(block_mask_exact)
    inputs.bool_mask[0] = False  # an empty mask, and one with fewer patches
    inputs.bool_mask[1] &= inputs.bool_mask[1].cumsum(0) <= 3
    assert inputs.bool_mask.sum(1).tolist() == [0, 3, NUM_MASKED, NUM_MASKED]
    loss, _ = task(inputs)
    torch.testing.assert_close(loss, restated_loss(task, inputs.images, inputs.bool_mask))


@pytest.mark.parametrize("masks", MASKS)
def test_a_head_on_num_masked_patches_has_the_loss_of_a_head_on_all(clip_teacher, masks):
    inputs = random_inputs(masks)
    some, all_patches = (make_task(clip_teacher, num_masked=count) for count in (NUM_MASKED, None))
    torch.testing.assert_close(some(inputs)[0], all_patches(inputs)[0])


@pytest.mark.parametrize("masks", MASKS)
def test_no_shape_depends_on_the_masks(clip_teacher, masks):
    task = make_task(clip_teacher).to("meta")  # a boolean index or an `item()` would fail there
    inputs = map_tensors(random_inputs(masks), lambda value: value.to("meta"))
    loss, _ = task(inputs)
    loss.backward()
    assert loss.shape == ()
    with pytest.raises(NotImplementedError):  # as `tokens[bool_mask]` would need
        inputs.bool_mask.nonzero()


def test_only_visible_pixels_reach_the_student(clip_teacher):
    task, inputs = make_task(clip_teacher), random_inputs()
    images, bool_mask = inputs.images, inputs.bool_mask
    hidden = F.interpolate(bool_mask.float().view(4, 1, 4, 4), scale_factor=8).bool()
    before = task.student_tokens(images, bool_mask)
    assert torch.equal(task.student_tokens(torch.where(hidden, 255 - images, images), bool_mask), before)
    changed = task.student_tokens(torch.where(hidden, images, 255 - images), bool_mask)
    assert (changed != before).any(dim=-1).all()


def test_bf16_computes_the_loss_in_fp32(clip_teacher):
    task, inputs = make_task(clip_teacher), random_inputs()
    full, _ = task(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = task(inputs)
    assert loss.dtype == torch.float32
    assert loss != full
    assert loss.item() == pytest.approx(full.item(), abs=0.02)


@pytest.mark.parametrize("model", ["ViT-Pico-8-32", "EVA02-Pico-8-32", STUDENT])
def test_a_teacher_stored_in_bf16_has_the_features_of_autocast(model):
    def fresh(bf16: bool | None) -> Teacher:
        if model == STUDENT:
            encoder = build_vision(model, num_classes=0, seed=0)
            return Teacher(encoder, vision_preprocess(encoder), projected=False, bf16=bf16)
        clip = build_clip(model, seed=0)
        return Teacher(clip, clip.preprocess, bf16=bf16)

    images = random_inputs().images
    full, kept = fresh(None).features(images, (4, 4)), fresh(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fresh(None).features(images, (4, 4))
        assert torch.equal(fresh(False).features(images, (4, 4)), full)
    if model == "ViT-Pico-8-32":  # under a CPU's autocast torch's own attention leaves fp32 weights as they are
        assert F.cosine_similarity(kept.features(images, (4, 4)).float(), cast.float(), dim=-1).min() > 0.9995
    else:
        assert torch.equal(kept.features(images, (4, 4)), cast)
    assert not torch.equal(cast.float(), full)
    assert kept.width == full.shape[-1]
    kinds = {type(part).__name__: part.weight.dtype for part in kept.module.modules() if hasattr(part, "weight")}
    assert {kinds["Linear"], kinds["Conv2d"], kinds["LayerNorm"]} == {torch.bfloat16, torch.float32}
    assert kinds["LayerNorm"] == torch.float32


def test_a_student_in_fp32_learns_from_a_teacher_in_bf16():
    clip = build_clip("ViT-Pico-8-32", seed=0)
    task = make_task(Teacher(clip, clip.preprocess, bf16=True)).train()
    loss, _ = task(random_inputs())
    loss.backward()
    assert all(param.grad is not None and param.grad.dtype == torch.float32 for param in task.parameters())


def test_predictions_of_masked_patches_depend_on_their_position(clip_teacher):
    task, inputs = make_task(clip_teacher), random_inputs()
    tokens = task.student_tokens(inputs.images, inputs.bool_mask)
    first, second = tokens[0][inputs.bool_mask[0]][:2]
    assert not torch.allclose(first, second, atol=1e-3)


def test_every_trained_parameter_has_a_gradient(clip_teacher):
    for student, arguments in [
        (STUDENT, {}),
        ("vit_pico_patch8_32", {}),
        ("vit_pico_patch8_32", {"global_pool": "map", "class_token": False}),
        ("vit_pico_patch8_32", {"global_pool": "avg", "reg_tokens": 2}),
    ]:
        task = make_task(clip_teacher, student, **arguments)
        task(random_inputs())[0].backward()
        left = [name for name, param in task.named_parameters() if param.requires_grad and param.grad is None]
        assert left == []  # DDP would wait for them forever


def test_the_student_is_restored_after_a_step_and_after_an_error(clip_teacher):
    task, inputs = make_task(clip_teacher), random_inputs()
    pixels = task.preprocess.pixels(inputs.images)
    before = task.student(pixels)
    task(inputs)
    with pytest.raises(ValueError, match="bool_mask"):
        task(replace(inputs, bool_mask=inputs.bool_mask[:, :9]))
    assert not task.student.patch_embed._forward_hooks
    assert torch.equal(task.student(pixels), before)


def test_the_teacher_is_neither_trained_nor_saved(clip_teacher):
    task = make_task(clip_teacher)
    owned = {id(param) for param in clip_teacher.module.parameters()}
    groups = build_optimizer(task, AdamW(), 1e-3).param_groups
    assert not owned & {id(param) for group in groups for param in group["params"]}
    assert not owned & {id(value) for value in task.state_dict(keep_vars=True).values()}
    assert {name.split(".")[0] for name in task.state_dict()} == {"student", "objectives", "mask_token"}
    loss, _ = task.train()(random_inputs())
    loss.backward()
    assert all(param.grad is None for param in clip_teacher.module.parameters())
    assert not any(module.training for module in clip_teacher.module.modules())


def test_vectors_positions_and_the_mask_token_are_not_decayed(clip_teacher):
    task = make_task(clip_teacher)
    names = {id(param): name for name, param in task.named_parameters()}
    groups = [(group.weight_decay, [names[id(param)] for param in group.params]) for group in task.parameter_groups()]
    plain = {name for decay, members in groups if decay == 0.0 for name in members}
    assert {"mask_token", "objectives.0.head.bias", "student.pos_embed", "student.cls_token"} <= plain
    assert not {"objectives.0.head.weight", "student.blocks.0.attn.qkv.weight"} & plain


def test_head_and_mask_token_depend_only_on_the_seed(clip_teacher):
    def fresh(seed: int) -> tuple[Tensor, Tensor]:
        task = EvaTask(build_vision(STUDENT, num_classes=0, seed=0), clip_teacher, seed=seed)
        return task.objectives[0].head.weight, task.mask_token

    first = fresh(3)
    torch.rand(5)  # another state of the global generator
    assert all(map(torch.equal, fresh(3), first))
    assert not any(map(torch.equal, fresh(4), first))


def test_a_student_that_is_its_own_teacher_has_cosines_of_one(clip_teacher):
    """Check that cosine_map is 1 for equal predictions and targets: the student is its own teacher, unmasked."""
    encoder = make_task(clip_teacher).student
    task = EvaTask(encoder, Teacher(encoder, vision_preprocess(encoder), projected=False))
    torch.nn.init.eye_(task.objectives[0].head.weight)
    nothing = torch.zeros(4, 16, dtype=torch.bool)
    cosines = task.eval().cosine_map(replace(random_inputs(), bool_mask=nothing))
    torch.testing.assert_close(cosines, torch.ones(4, 16))
    assert (task.cosine_map(random_inputs()) < 0.999).any()


def test_resampled_features_keep_their_position():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 6), indexing="ij")
    features = torch.stack([rows, columns, torch.ones(8, 6)], dim=-1).reshape(1, 48, 3)
    assert resample_grid(features, (8, 6), (8, 6)) is features
    for grid in [(4, 3), (16, 12), (5, 5)]:
        planes = resample_grid(features, (8, 6), grid).reshape(*grid, 3)
        torch.testing.assert_close(planes[..., 0], planes[:, :1, 0].expand(grid))  # constant within each row
        torch.testing.assert_close(planes[..., 1], planes[:1, :, 1].expand(grid))
        assert (planes[:, 0, 0].diff() > 0).all() and (planes[0, :, 1].diff() > 0).all()  # noqa: PT018
        torch.testing.assert_close(planes[..., 2], torch.ones(grid))


def test_a_teacher_of_another_size_needs_teacher_images():
    large = build_clip("ViT-Pico-8-64", seed=0)
    task = make_task(Teacher(large, large.preprocess))
    inputs = random_inputs()
    with pytest.raises(UserError, match="expected images of 64 pixels for the teacher, got 32"):
        task(inputs)
    flat = torch.full((4, 3, 64, 64), 100, dtype=torch.uint8)
    target = task.teacher.targets(replace(inputs, teacher_images=flat), task.grid)
    assert target.shape == (4, 16, 64)
    assert torch.isfinite(task(replace(inputs, teacher_images=flat))[0])


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vitamin_small_224", "vit_base_mci_224"])
def test_a_teacher_may_have_a_convolutional_stem(name):
    encoder = build_vision(name, depth=1, image_size=64, num_classes=0, seed=0)
    teacher = Teacher(encoder, vision_preprocess(encoder), projected=False)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    side = encoder.patch_embed.grid_size[0]
    with torch.no_grad():
        tokens = encoder.forward_features(teacher.preprocess.pixels(images))[:, encoder.num_prefix_tokens :]
        torch.testing.assert_close(teacher.features(images, (side, side)), encoder.fc_norm(tokens))
    assert teacher.features(images, (5, 5)).shape == (2, 25, encoder.num_features)


@pytest.mark.parametrize(
    ("name", "arguments", "num_masked", "line"),
    [
        ("resnet18", {}, None, "no patch tokens"),
        ("vit_tiny_r_s16_p8_224", {}, None, "overlapping patches"),
        ("vit_pico_patch8_32", {"patch_drop_rate": 0.5}, None, "patch_drop_rate"),
        (STUDENT, {"patch_drop_rate": 0.5}, None, "patch_drop_rate"),
        (STUDENT, {}, 16, "masks 16 of the student's 4 x 4 patches"),
        (STUDENT, {}, 0, "masks 0 of the student's 4 x 4 patches"),
    ],
)
def test_a_student_that_cannot_be_masked_is_refused_in_one_line(clip_teacher, name, arguments, num_masked, line):
    with pytest.raises(UserError, match=line) as caught:
        EvaTask(build_vision(name, num_classes=0, **arguments), clip_teacher, num_masked=num_masked)
    assert "\n" not in str(caught.value)
