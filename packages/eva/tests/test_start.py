"""`start`: pre-training goes on from an earlier one, or adapts any encoder; what the authors' code needs to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from eva_toy import STUDENT, context, losses, run, stage
from vfm.models import (
    build_vision,
    find_format,
    import_vision,
    load_vision,
    open_model,
    patch_features,
    save_vision,
    vision_features,
)
from vfm.plugin import Event, Preflight, UserError, VisionCheckpoint
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.pretrain import build_task, start_from
from vfm_eva.targets.stored import StoredTargets

ADDED = "masked_modelling.safetensors"
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 32, "num_classes": 0}
STARTS = {
    "EVA-02": "eva02_tiny_patch14_224",
    "DINOv2": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "SigLIP": "vit_base_patch16_siglip_224",
    "CLIP": "vit_base_patch16_clip_224",
}
GO_ON: dict[str, Any] = {"model": None, "start": "start", "lr": 0.0, "steps": 1, "schedule": {"min_lr": 0.0}}


def going_on(**changes: Any) -> dict[str, Any]:
    settings = {**GO_ON, **changes}
    settings.pop("model")
    return settings


def start_stage(**changes: Any) -> Any:
    """Return a configuration without `model`."""
    whole = stage().model_dump(exclude_unset=True)
    whole.pop("model")
    return type(stage()).model_validate(whole | going_on(**changes))


def encoder(folder: Path, name: str, **arguments: Any) -> VisionCheckpoint:
    model = build_vision(name, seed=0, **{**TINY, **arguments})
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return save_vision(model, folder)


@pytest.mark.parametrize("encode", [{}, {"encode": "visible", "mask": {"type": "random"}}])
def test_a_training_goes_on_with_its_mask_token_head_and_decoder(tmp_path, pool, teacher, encode):
    narrow = {"decoder": {"width": 16, "depth": 1, "num_heads": 2}} if encode else {}
    first = run(tmp_path / "first", {"steps": 3, **encode, **narrow}, pool=pool, teacher=teacher)
    logs: list[Event] = []
    ctx = context(tmp_path / "second", logs.append, pool=pool, teacher=teacher, start=first)
    second = start_stage(**encode, **narrow).run(ctx)
    for file in ("model.safetensors", ADDED):  # at rate 0 the second training changes nothing
        one, other = load_file(first.path / file), load_file(second.path / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert any("its mask token and head" in event.data.get("message", "") for event in logs)
    assert losses(tmp_path / "second")[0] < 0


@pytest.mark.parametrize("name", STARTS)
def test_any_encoder_starts_with_its_own_patch_features(name: str, tmp_path: Path) -> None:
    start = encoder(tmp_path, STARTS[name])
    config = start_stage()
    task = build_task(config, build_student(config, start), StoredTargets(8))
    start_from(task, start, context(tmp_path / "ctx"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = patch_features(task.student.eval(), images, projected=False)
    torch.testing.assert_close(found, patch_features(load_vision(start).eval(), images, projected=False))


def test_another_resolution_resamples_positions_and_keeps_the_head(tmp_path, pool, teacher):
    first = run(tmp_path / "first", {"steps": 1}, pool=pool, teacher=teacher)
    ctx = context(tmp_path / "second", pool=pool, teacher=teacher, start=first)
    larger = load_vision(start_stage(image_size=48).run(ctx)).eval()
    assert torch.equal(larger.pos_embed, load_vision(first, image_size=48).pos_embed)
    images = torch.randn(1, 3, 48, 48)
    (dynamic,) = vision_features(load_vision(first).eval(), images)
    torch.testing.assert_close(vision_features(larger, images)[0].patches, dynamic.patches)
    assert torch.equal(load_file(first.path / ADDED)["head.weight"], load_file(ctx.directory / ADDED)["head.weight"])


def test_a_head_for_other_targets_is_new(tmp_path, pool, teacher):
    first = run(tmp_path / "first", {"steps": 1}, pool=pool, teacher=teacher)
    config = start_stage()
    task = build_task(config, build_student(config, first), StoredTargets(9))
    before = task.objectives[0].head.weight.clone()
    start_from(task, first, context(tmp_path / "ctx"))
    assert torch.equal(task.objectives[0].head.weight, before)


def test_settings_that_contradict_start_are_refused() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        stage(model=STUDENT, start="other")
    with pytest.raises(ValidationError, match="would replace the weights"):
        start_stage(student={"init": "mae"})


def test_preflight_checks_a_known_start(tmp_path: Path) -> None:
    start = encoder(tmp_path / "start", "vit_relpos_small_patch16_224")
    config = start_stage(encode="visible", mask={"type": "random"})
    with pytest.raises(UserError, match="relative positions need all patches"):
        config.preflight(Preflight({}, {"start": start.path}))
    config.preflight(Preflight({}, {}))


def official_mim_keys(depth: int) -> set[str]:
    """Return the keys of EVA-02 Ti's pre-training class, with fused qkv and packed SwiGLU, typed again."""
    tables = [f"{owner}freqs_{part}" for owner in ("rope.", *(f"blocks.{n}.attn.rope." for n in range(depth)))
              for part in ("cos", "sin")]  # fmt: skip
    block = [
        "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.qkv.weight", "attn.q_bias", "attn.v_bias",
        "attn.proj.weight", "attn.proj.bias", "mlp.w12.weight", "mlp.w12.bias", "mlp.w3.weight", "mlp.w3.bias",
    ]  # fmt: skip
    whole = ["cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight",
             "norm.bias", "lm_head.weight", "lm_head.bias"]  # fmt: skip
    return {*whole, *tables, *(f"blocks.{n}.{key}" for n in range(depth) for key in block)}


def test_the_exported_file_has_every_key_of_the_authors_class_and_comes_back(tmp_path, pool, teacher):
    first = run(tmp_path / "first", {"steps": 1}, pool=pool, teacher=teacher)
    model = open_model(first.path)
    find_format("eva", model, "eva").write(model, tmp_path / "eva")
    tensors = torch.load(tmp_path / "eva" / "model.pt", weights_only=True)["model"]
    assert set(tensors) == official_mim_keys(depth=2)
    kept = load_file(first.path / ADDED)
    assert tensors["mask_token"].shape == (1, 1, 64)
    assert torch.equal(tensors["lm_head.weight"], kept["head.weight"])
    again = import_vision(STUDENT, str(tmp_path / "eva" / "model.pt"))
    back = save_vision(again, tmp_path / "back")
    found = load_file(back.path / ADDED)
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[key], kept[key]) for key in kept)
