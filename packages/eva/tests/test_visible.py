"""EVA-L: the encoder takes only visible patches, a light decoder predicts the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from eva_toy import STUDENT, losses, random_inputs, run, stage
from vfm.models import build_vision, load_clip, load_vision
from vfm.plugin import AdamW
from vfm.train import build_optimizer
from vfm_eva.pretrain.students.decoder import MaskDecoder
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.teacher import Teacher
from vfm_kernels import block_mask_exact, random_mask

VISIBLE = {"encode": "visible", "mask": {"type": "random", "ratio": 0.75}}
DECODER = {"decoder": {"width": 32, "depth": 2, "num_heads": 2}}


def visible_task(teacher: Any, student: str = STUDENT, num_masked: int = 7, **arguments: Any) -> EvaTask:
    clip, encoder = load_clip(teacher), build_vision(student, num_classes=0, seed=0, **arguments)
    decoder = MaskDecoder(encoder.num_features, (4, 4), encoder.num_prefix_tokens, width=32, depth=2, num_heads=2)
    task = EvaTask(encoder, Teacher(clip, clip.preprocess), num_masked=num_masked, decoder=decoder)
    generator = torch.Generator().manual_seed(1)
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return task.eval()


def restated_loss(task: EvaTask, images: Tensor, bool_mask: Tensor) -> Tensor:
    """Return the loss of MAE's forward pass with cosine, image by image (`modeling_mae_pretrain.py`)."""
    student, decoder, cosines = task.student, task.decoder, []
    prefix = student.num_prefix_tokens
    for image, hidden in zip(images[:, None], bool_mask, strict=True):
        tokens = student.patch_embed(task.preprocess.pixels(image))
        extra = [getattr(student, name) for name in ("cls_token", "reg_token") if getattr(student, name) is not None]
        if student.no_embed_class:
            tokens = torch.cat([*extra, tokens + student.pos_embed], dim=1)
        else:
            tokens = torch.cat([*extra, tokens], dim=1) + student.pos_embed
        seen = torch.cat([torch.ones(prefix, dtype=torch.bool), ~hidden])
        tokens = tokens[:, seen]
        rope = {"rope": student.rope.get_embed()[~hidden]} if getattr(student, "rope", None) is not None else {}
        for block in student.blocks:
            tokens = block(tokens, **rope)
        tokens = decoder.embed(student.fc_norm(student.norm(tokens)))[0]
        whole = task.mask_token.repeat(prefix + len(hidden), 1)
        whole[seen] = tokens
        whole = whole[None] + decoder.pos_embed
        for block in decoder.blocks:
            whole = block(whole)
        prediction = task.objectives[0].head(decoder.norm(whole)[0, prefix:][hidden])
        target = task.teacher.features(image, task.grid)[0][hidden]
        cosines.append(torch.nn.CosineSimilarity(dim=-1)(prediction, target))
    return -torch.cat(cosines).mean()


@pytest.mark.parametrize("masks", [random_mask, block_mask_exact])
@pytest.mark.parametrize(
    ("student", "arguments"),
    [
        (STUDENT, {}),
        ("vit_pico_patch8_32", {}),
        ("vit_pico_patch8_32", {"global_pool": "avg", "reg_tokens": 2, "no_embed_class": True}),
    ],
)
def test_loss_and_gradients_are_those_of_mae_image_by_image(teacher, masks, student, arguments):
    task, inputs = visible_task(teacher, student, **arguments), random_inputs(masks)
    loss, _ = task(inputs)
    plain = restated_loss(task, inputs.images, inputs.bool_mask)
    torch.testing.assert_close(loss, plain)
    trained = [param for param in task.parameters() if param.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(loss, trained), torch.autograd.grad(plain, trained), atol=1e-5, rtol=1e-4
    )


def test_the_encoder_takes_no_masked_patch(teacher):
    task, inputs = visible_task(teacher), random_inputs(random_mask)
    seen: list[torch.Size] = []
    task.student.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    before = task.student_tokens(inputs.images, inputs.bool_mask)
    hidden = torch.nn.functional.interpolate(inputs.bool_mask.float().view(4, 1, 4, 4), scale_factor=8).bool()
    changed = torch.where(hidden, 255 - inputs.images, inputs.images)
    assert torch.equal(task.student_tokens(changed, inputs.bool_mask), before)
    assert seen[0] == (4, 1 + 9, 64)


def test_the_student_is_restored_after_a_step_and_after_an_error(teacher):
    for name in (STUDENT, "vit_pico_patch8_32"):
        task, inputs = visible_task(teacher, name), random_inputs(random_mask)
        dropout, keys = task.student.patch_drop, list(task.student.state_dict())
        task(inputs)
        with pytest.raises(RuntimeError):
            task(replace(inputs, images=inputs.images[:2]))
        assert task.student.patch_drop is dropout
        assert list(task.student.state_dict()) == keys


def test_cosines_rise_during_training(tmp_path, pool, teacher):
    """Check the sign: the released code minimised the cosine, and its predictions end opposite to the targets."""
    settings = {**VISIBLE, **DECODER, "steps": 40, "global_batch_size": 32, "lr": 5e-3, "schedule": {"warmup_steps": 5}}
    run(tmp_path, settings, pool=pool, teacher=teacher)
    curve = losses(tmp_path)
    assert curve[-1] < -0.5 < curve[0]


def test_the_exported_encoder_is_plain_timm(tmp_path, pool, teacher):
    made = run(tmp_path, {**VISIBLE, **DECODER, "student": {"init": "mae"}, "steps": 2}, pool=pool, teacher=teacher)
    encoder = timm.create_model(f"local-dir:{made.path}", pretrained=True).eval()
    assert set(encoder.state_dict()) == set(timm.create_model(STUDENT).state_dict())
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder(pixels), load_vision(made.path).eval()(pixels))


def test_every_trained_parameter_has_a_gradient_and_fixed_positions_have_none(teacher):
    task = visible_task(teacher)
    task(random_inputs(random_mask))[0].backward()
    assert [name for name, param in task.named_parameters() if param.requires_grad and param.grad is None] == []
    grouped = {id(param) for group in build_optimizer(task, AdamW(), 1e-3).param_groups for param in group["params"]}
    assert id(task.decoder.pos_embed) not in grouped


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"encode": "visible"}, "use random or block_exact, not block"),
        (DECODER, "decoder has no effect with encode: all"),
        ({**VISIBLE, "decoder": {"width": 32, "num_heads": 5}}, "width must be a multiple of num_heads, 5; got 32"),
        ({**VISIBLE, "decoder": {"width": 30}}, "multiple of 4"),
    ],
)
def test_contradicting_decoder_settings_are_refused(changes, line):
    with pytest.raises(ValidationError, match=line):
        stage(**changes)
