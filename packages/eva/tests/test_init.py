"""Initial weights are those of the papers' code."""

from __future__ import annotations

import math

import pytest
import torch

from vfm.models import build_vision
from vfm_eva.pretrain.task import EvaInputs, EvaTask
from vfm_eva.pretrain.weight_init import init_weights
from vfm_eva.targets.stored import StoredTargets

CUT = 0.5396  # std of a standard normal truncated at one std


def fresh(model: str, init: str, seed: int = 0) -> EvaTask:
    task = EvaTask(build_vision(model, num_classes=0, seed=1), StoredTargets(256))
    init_weights(task, init, seed)
    return task


def std(tensor: torch.Tensor) -> float:
    return tensor.detach().std().item()


def about(value: float):
    return pytest.approx(value, rel=0.04)


def test_eva01_is_a_truncated_normal_with_smaller_outputs_of_deeper_blocks():
    task = fresh("vit_nano_patch4_32", "eva01")
    student = task.student
    for tensor in (
        student.patch_embed.proj.weight,
        student.blocks[2].attn.qkv.weight,
        student.pos_embed,
        task.objectives[0].head.weight,
    ):
        assert std(tensor) == about(0.015 * CUT)
        assert tensor.abs().max() <= 0.015
    for number, block in enumerate(student.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert std(weight) == about(0.015 * CUT / math.sqrt(2 * number))
    assert all(not param.any() for name, param in task.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(("model", "sub_ln"), [("eva02_nano_patch4_32", False), ("eva02_mini_patch14_112", True)])
def test_eva02_is_xaviers_and_sub_ln_scales_all_but_queries_and_keys(model, sub_ln):
    task = fresh(model, "eva02")
    student = task.student
    scale = math.sqrt(math.log(2 * len(student.blocks))) if sub_ln else 1

    def xavier(weight: torch.Tensor) -> float:
        return math.sqrt(2 / sum(weight.shape))

    block = student.blocks[1]
    for name, weight in block.named_parameters():
        if weight.ndim == 2:
            outside = any(part in name for part in ("mlp", "attn.proj", "v_proj"))
            assert std(weight) == about(xavier(weight) * (scale if outside else 1)), name
    assert std(task.objectives[0].head.weight) == about(xavier(task.objectives[0].head.weight))
    patch = student.patch_embed.proj.weight.flatten(1)
    assert std(patch) == about(xavier(patch))
    assert patch.abs().max() <= math.sqrt(6 / sum(patch.shape))
    assert std(student.pos_embed) == about(0.02 * CUT)


def test_the_sub_ln_scale_is_the_papers():
    assert math.sqrt(math.log(2 * 12)) == pytest.approx(1.783, abs=1e-3)
    assert math.sqrt(math.log(2 * 24)) == pytest.approx(1.967, abs=1e-3)


def test_fused_values_are_scaled_like_separate_ones():
    model = {"architecture": "eva02_mini_patch14_112", "qkv_fused": True}
    task = EvaTask(build_vision(model, num_classes=0, seed=1), StoredTargets(256))
    init_weights(task, "eva02", 0)
    query, _, value = task.student.blocks[0].attn.qkv.weight.chunk(3)
    assert std(value) / std(query) == about(math.sqrt(math.log(12)))


def test_mae_has_fixed_sine_cosine_positions():
    task = fresh("vit_nano_patch4_32", "mae")
    positions = task.student.pos_embed
    assert not positions.requires_grad
    assert not positions[0, 0].any()
    assert len({tuple(row) for row in positions[0].tolist()}) == 65
    torch.testing.assert_close(positions[0, 1:].square().sum(-1), torch.full((64,), 64.0))
    weight = task.student.blocks[0].mlp.fc1.weight
    assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / sum(weight.shape)), rel=1e-3)


def test_weights_depend_on_the_seed_and_timm_keeps_its_own():
    for init in ("eva01", "eva02", "mae"):
        first, again, other = (fresh("eva02_pico_patch8_32", init, seed).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["objectives.0.head.weight"], other["objectives.0.head.weight"])
    built = build_vision("eva02_pico_patch8_32", num_classes=0, seed=1).state_dict()
    kept = fresh("eva02_pico_patch8_32", "timm").student.state_dict()
    assert all(torch.equal(kept[name], built[name]) for name in built)


def test_patch_embed_grad_scales_only_the_patch_embeddings_gradient():
    def gradients(share: float) -> dict[str, torch.Tensor]:
        student = build_vision("eva02_pico_patch8_32", num_classes=0, seed=1)
        task = EvaTask(student, StoredTargets(8), num_masked=7, patch_embed_grad=share)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
        targets = torch.randn(2, 16, 8, generator=generator)
        task(EvaInputs(images, torch.arange(16).expand(2, 16) < 7, targets=targets))[0].backward()
        return {name: param.grad for name, param in task.named_parameters()}

    whole, tenth = gradients(1.0), gradients(0.1)
    for name, grad in whole.items():
        torch.testing.assert_close(tenth[name], grad * (0.1 if "patch_embed" in name else 1.0))
