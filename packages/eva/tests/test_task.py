"""The loss is EVA's, its teacher stays as it is, and what is masked stays hidden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import eva_toy
from eva_toy import NUM_MASKED, STUDENT, make_task, random_batch
from vfm import UserError
from vfm.models import build_clip, build_vision, load_clip, vision_preprocess
from vfm.train import build_optimizer
from vfm_eva import EvaTask, Teacher
from vfm_eva.teacher import to_grid
from vfm_kernels import block_mask, block_mask_exact, random_mask

MASKS = [block_mask, block_mask_exact, random_mask]


@pytest.fixture
def clip_teacher(teacher) -> Teacher:
    clip = load_clip(teacher)
    return Teacher(clip, clip.preprocess)


def restated_loss(task: EvaTask, images: Tensor, bool_mask: Tensor) -> Tensor:
    """EVA's ten lines, on the student's parts (arXiv:2211.07636; `forward` of its pre-training model)."""
    student: Any = task.student
    tokens = student.patch_embed(task.preprocess.pixels(images))
    w = bool_mask.unsqueeze(-1).float()
    tokens = tokens * (1 - w) + task.mask_token * w
    tokens = torch.cat([student.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + student.pos_embed
    rope = {"rope": student.rope.get_embed()} if hasattr(student, "rope") else {}
    for block in student.blocks:
        tokens = block(tokens, **rope)
    tokens = student.fc_norm(student.norm(tokens))[:, 1:]
    prediction = task.head(tokens[bool_mask])
    visual: Any = task.teacher.module
    visual.output_tokens = True  # open_clip's own: all patch tokens after the final norm
    _, patch_tokens = visual(task.teacher.preprocess.pixels(images))
    target = (patch_tokens @ visual.proj)[bool_mask]
    return -torch.nn.CosineSimilarity(dim=-1)(prediction.float(), target.float()).mean()


@pytest.mark.parametrize("student", [STUDENT, "vit_pico_patch8_32"])
@pytest.mark.parametrize("masks", MASKS)
def test_loss_and_gradients_are_those_of_evas_ten_lines(clip_teacher, masks, student):
    task, batch = make_task(clip_teacher, student), random_batch(masks)
    loss, metrics = task(batch)
    plain = restated_loss(task, batch["images"], batch["bool_mask"])
    torch.testing.assert_close(loss, plain)
    parameters = list(task.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters))
    assert metrics["masked_share"] == batch["bool_mask"].float().mean()


def test_masks_of_unequal_count_weigh_every_masked_patch_the_same(clip_teacher):
    task, batch = make_task(clip_teacher), random_batch(block_mask_exact)
    batch["bool_mask"][0] = False  # a mask that stopped short of all, and one that stopped half way
    batch["bool_mask"][1] &= batch["bool_mask"][1].cumsum(0) <= 3
    assert batch["bool_mask"].sum(1).tolist() == [0, 3, NUM_MASKED, NUM_MASKED]
    loss, _ = task(batch)
    torch.testing.assert_close(loss, restated_loss(task, batch["images"], batch["bool_mask"]))


@pytest.mark.parametrize("masks", MASKS)
def test_a_head_on_so_many_patches_gives_the_loss_of_a_head_on_all(clip_teacher, masks):
    batch = random_batch(masks)
    some, all_patches = (make_task(clip_teacher, num_masked=count) for count in (NUM_MASKED, None))
    torch.testing.assert_close(some(batch)[0], all_patches(batch)[0])


@pytest.mark.parametrize("masks", MASKS)
def test_no_shape_depends_on_the_masks_so_nothing_waits_for_the_device(clip_teacher, masks):
    task = make_task(clip_teacher).to("meta")  # a boolean index or an `item()` cannot be answered there
    batch = {name: value.to("meta") for name, value in random_batch(masks).items() if isinstance(value, Tensor)}
    loss, _ = task(batch)
    loss.backward()
    assert loss.shape == ()
    with pytest.raises(NotImplementedError):  # what `tokens[bool_mask]` would have to ask
        batch["bool_mask"].nonzero()


def test_pixels_under_the_mask_do_not_reach_the_student_and_seen_ones_do(clip_teacher):
    task, batch = make_task(clip_teacher), random_batch()
    images, bool_mask = batch["images"], batch["bool_mask"]
    hidden = F.interpolate(bool_mask.float().view(4, 1, 4, 4), scale_factor=8).bool()
    before = task.student_tokens(images, bool_mask)
    assert torch.equal(task.student_tokens(torch.where(hidden, 255 - images, images), bool_mask), before)
    changed = task.student_tokens(torch.where(hidden, images, 255 - images), bool_mask)
    assert (changed != before).any(dim=-1).all()


def test_bf16_computes_the_loss_in_fp32(clip_teacher):
    task, batch = make_task(clip_teacher), random_batch()
    full, _ = task(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = task(batch)
    assert loss.dtype == torch.float32
    assert loss != full
    assert loss.item() == pytest.approx(full.item(), abs=0.02)


@pytest.mark.parametrize("model", ["ViT-Pico-8-32", "EVA02-Pico-8-32", STUDENT])
def test_a_teacher_kept_in_bf16_says_what_autocast_makes_of_one_in_fp32(model):
    def fresh(bf16: bool | None) -> Teacher:
        if model == STUDENT:
            encoder = build_vision(model, num_classes=0, seed=0)
            return Teacher(encoder, vision_preprocess(encoder), projected=False, bf16=bf16)
        clip = build_clip(model, seed=0)
        return Teacher(clip, clip.preprocess, bf16=bf16)

    images = random_batch()["images"]
    full, kept = fresh(None).target(images, (4, 4)), fresh(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fresh(None).target(images, (4, 4))
        assert torch.equal(fresh(False).target(images, (4, 4)), full)
    if model == "ViT-Pico-8-32":  # under a CPU's autocast torch's own attention leaves fp32 weights as they are
        assert F.cosine_similarity(kept.target(images, (4, 4)).float(), cast.float(), dim=-1).min() > 0.9995
    else:
        assert torch.equal(kept.target(images, (4, 4)), cast)
    assert not torch.equal(cast.float(), full)
    assert kept.width == full.shape[-1]
    kinds = {type(part).__name__: part.weight.dtype for part in kept.module.modules() if hasattr(part, "weight")}
    assert {kinds["Linear"], kinds["Conv2d"], kinds["LayerNorm"]} == {torch.bfloat16, torch.float32}
    assert kinds["LayerNorm"] == torch.float32


def test_a_student_in_fp32_learns_from_a_teacher_in_bf16():
    clip = build_clip("ViT-Pico-8-32", seed=0)
    task = make_task(Teacher(clip, clip.preprocess, bf16=True)).train()
    loss, _ = task(random_batch())
    loss.backward()
    assert all(param.grad is not None and param.grad.dtype == torch.float32 for param in task.parameters())


def test_a_masked_patch_knows_its_position(clip_teacher):
    task, batch = make_task(clip_teacher), random_batch()
    tokens = task.student_tokens(batch["images"], batch["bool_mask"])
    first, second = tokens[0][batch["bool_mask"][0]][:2]
    assert not torch.allclose(first, second, atol=1e-3)


def test_every_trained_parameter_has_a_gradient(clip_teacher):
    for student, arguments in [
        (STUDENT, {}),
        ("vit_pico_patch8_32", {}),
        ("vit_pico_patch8_32", {"global_pool": "map", "class_token": False}),
        ("vit_pico_patch8_32", {"global_pool": "avg", "reg_tokens": 2}),
    ]:
        task = make_task(clip_teacher, student, **arguments)
        task(random_batch())[0].backward()
        left = [name for name, param in task.named_parameters() if param.requires_grad and param.grad is None]
        assert left == []  # DDP would wait for them for ever


def test_the_student_is_untouched_after_a_step_and_after_a_failure(clip_teacher):
    task, batch = make_task(clip_teacher), random_batch()
    pixels = task.preprocess.pixels(batch["images"])
    before = task.student(pixels)
    task(batch)
    with pytest.raises(ValueError, match="bool_mask"):
        task(batch | {"bool_mask": batch["bool_mask"][:, :9]})
    assert not task.student.patch_embed._forward_hooks
    assert torch.equal(task.student(pixels), before)


def test_the_teacher_is_no_part_of_what_is_trained_and_saved(clip_teacher):
    task = make_task(clip_teacher)
    owned = {id(param) for param in clip_teacher.module.parameters()}
    groups = build_optimizer(task, eva_toy.stage()).param_groups
    assert not owned & {id(param) for group in groups for param in group["params"]}
    assert not owned & {id(value) for value in task.state_dict(keep_vars=True).values()}
    assert {name.split(".")[0] for name in task.state_dict()} == {"student", "head", "mask_token"}
    loss, _ = task.train()(random_batch())
    loss.backward()
    assert all(param.grad is None for param in clip_teacher.module.parameters())
    assert not any(module.training for module in clip_teacher.module.modules())


def test_vectors_positions_and_the_mask_token_are_not_decayed(clip_teacher):
    task = make_task(clip_teacher)
    names = {id(param): name for name, param in task.named_parameters()}
    groups = [(group.weight_decay, [names[id(param)] for param in group.params]) for group in task.parameter_groups()]
    plain = {name for decay, members in groups if decay == 0.0 for name in members}
    assert {"mask_token", "head.bias", "student.pos_embed", "student.cls_token"} <= plain
    assert not {"head.weight", "student.blocks.0.attn.qkv.weight"} & plain


def test_the_seed_alone_draws_head_and_mask_token(clip_teacher):
    def fresh(seed: int) -> tuple[Tensor, Tensor]:
        task = EvaTask(build_vision(STUDENT, num_classes=0, seed=0), clip_teacher, seed=seed)
        return task.head.weight, task.mask_token

    first = fresh(3)
    torch.rand(5)  # another state of the global generator
    assert all(map(torch.equal, fresh(3), first))
    assert not any(map(torch.equal, fresh(4), first))


def test_a_pre_trained_student_finds_its_own_features(clip_teacher):
    """cosine_map is 1 where prediction and target are the same: the student's own encoder as its teacher, unmasked."""
    encoder = make_task(clip_teacher).student
    task = EvaTask(encoder, Teacher(encoder, vision_preprocess(encoder), projected=False))
    torch.nn.init.eye_(task.head.weight)
    nothing = torch.zeros(4, 16, dtype=torch.bool)
    cosines = task.eval().cosine_map(random_batch() | {"bool_mask": nothing})
    torch.testing.assert_close(cosines, torch.ones(4, 16))
    assert (task.cosine_map(random_batch()) < 0.999).any()


def test_features_of_another_grid_keep_their_place():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 6), indexing="ij")
    features = torch.stack([rows, columns, torch.ones(8, 6)], dim=-1).reshape(1, 48, 3)
    assert to_grid(features, (8, 6), (8, 6)) is features
    for grid in [(4, 3), (16, 12), (5, 5)]:
        planes = to_grid(features, (8, 6), grid).reshape(*grid, 3)
        torch.testing.assert_close(planes[..., 0], planes[:, :1, 0].expand(grid))  # rows differ among rows alone
        torch.testing.assert_close(planes[..., 1], planes[:1, :, 1].expand(grid))
        assert (planes[:, 0, 0].diff() > 0).all() and (planes[0, :, 1].diff() > 0).all()  # noqa: PT018
        torch.testing.assert_close(planes[..., 2], torch.ones(grid))


def test_a_teacher_of_another_size_wants_images_of_its_own():
    large = build_clip("ViT-Pico-8-64", seed=0)
    task = make_task(Teacher(large, large.preprocess))
    batch = random_batch()
    with pytest.raises(UserError, match="wants images of 64 pixels, these have 32"):
        task(batch)
    flat = torch.full((4, 3, 64, 64), 100, dtype=torch.uint8)
    target = task.teacher.of(batch | {"teacher_images": flat}, task.grid)
    assert target.shape == (4, 16, 64)
    assert torch.isfinite(task(batch | {"teacher_images": flat})[0])


@pytest.mark.parametrize(
    ("name", "arguments", "num_masked", "line"),
    [
        ("resnet18", {}, None, "no patch tokens"),
        ("vit_tiny_r_s16_p8_224", {}, None, "patches overlap"),
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
