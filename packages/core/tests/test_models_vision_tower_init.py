"""Initialising a vision tower must lose no key: each is taken, renamed, resized, new or dropped, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.interfaces import VisionCheckpoint
from vfm.models import (
    ClipModel,
    KeyReport,
    build_clip,
    build_vision,
    init_vision_tower,
    load_clip,
    save_clip,
    save_vision,
    vision_preprocess,
)
from vfm.models.weight_transfer import resize_patch_kernel

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def encoder(name: str = "eva02_pico_patch8_32", seed: int = 5, **arguments: object) -> nn.Module:
    """Build an encoder in which no two tensors are equal, so that a swapped key is noticed."""
    model = build_vision(name, seed=seed, **arguments).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    return model


def clip(timm_name: str = "eva02_pico_patch8_32", pool: str = "token", proj: str | None = None) -> ClipModel:
    size = int(timm_name.rsplit("_", 1)[1])
    vision = {"image_size": size, "timm_model_name": timm_name, "timm_pool": pool, "timm_proj": proj}
    model = build_clip({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}, seed=0)
    model.module.eval()
    return model


def keys_in(report: KeyReport) -> tuple[set[str], set[str]]:
    """Return the keys of the source and the keys of the tower that the report contains."""
    source = {*report.taken, *report.renamed, *report.resized, *report.dropped}
    target = {*report.taken, *report.renamed.values(), *report.resized, *report.new}
    return source, target


def test_tower_computes_the_encoders_features(tmp_path: Path) -> None:
    vision, model = encoder(global_pool="token", num_classes=0), clip()
    save_vision(vision, tmp_path)
    report = init_vision_tower(VisionCheckpoint.load(tmp_path), model)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.module.visual.trunk.forward_features(images), vision.forward_features(images))
    assert set(report.new) == {"head.weight", "head.bias"}
    assert (report.renamed, report.resized, report.dropped) == ({}, {}, {})


def test_images_are_normalised_as_for_the_encoder(tmp_path: Path) -> None:
    """Check that embeddings of a photograph start from the encoder's own features of it."""
    vision, model = encoder("vit_pico_patch8_32", global_pool="token", num_classes=0), clip("vit_pico_patch8_32")
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    vision.pretrained_cfg = {**vision.pretrained_cfg, **imagenet}  # type: ignore[assignment]
    checkpoint = save_vision(vision, tmp_path / "encoder")
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    with pytest.raises(UserError, match=r"images of mean 0\.485, 0\.456, 0\.406, .* has 0\.481, .*normalization"):
        init_vision_tower(checkpoint, model)
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
    init_vision_tower(checkpoint, model, take_normalization=True)
    photograph = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = vision(vision_preprocess(vision).pixels(photograph))
    torch.testing.assert_close(
        model.module.visual.trunk.forward_head(
            model.module.visual.trunk.forward_features(model.pixels(photograph)), pre_logits=True
        ),
        expected,
    )
    saved = load_clip(save_clip(model, tmp_path / "clip")).preprocess
    assert (saved.mean, saved.std) == (imagenet["mean"], imagenet["std"])


@pytest.mark.parametrize(("source_pool", "tower_pool"), [("token", "avg"), ("avg", "token")])
def test_final_norm_is_renamed_when_it_moves_across_pooling(source_pool: str, tower_pool: str) -> None:
    vision, model = encoder(global_pool=source_pool), clip(pool=tower_pool)
    report = init_vision_tower(vision.state_dict(), model)
    old, new = ("norm", "fc_norm") if source_pool == "token" else ("fc_norm", "norm")
    assert report.renamed == {f"{old}.weight": f"{new}.weight", f"{old}.bias": f"{new}.bias"}
    trunk = model.module.visual.trunk
    assert torch.equal(getattr(trunk, new).weight, getattr(vision, old).weight)


@pytest.mark.parametrize("proj", [None, "linear"])
def test_report_contains_every_key_of_both_sides(proj: str | None) -> None:
    vision, model = encoder(global_pool="token", num_classes=7), clip(proj=proj)
    source = {**vision.state_dict(), "mask_token": torch.zeros(1, 1, 64), "lm_head.weight": torch.zeros(9, 64)}
    report = init_vision_tower(source, model)
    source_keys, target_keys = keys_in(report)
    assert source_keys == set(source)
    visual = model.module.visual
    outside = {f"visual.{key}" for key in visual.state_dict() if not key.startswith("trunk.")}
    assert target_keys == set(visual.trunk.state_dict()) | outside
    assert set(report.dropped) == {"head.weight", "head.bias", "mask_token", "lm_head.weight"}
    assert report.panel().rows[0] == ["taken", f"{len(report.taken)} keys", "unchanged"]
    assert len(report.panel().rows) == 1 + len(report.renamed) + len(report.new) + len(report.dropped)
    assert report.summary.startswith(f"{len(report.taken)} taken, {len(report.renamed)} renamed, 0 resized, ")


def test_patch_14_is_resized_to_16_and_the_norm_of_eva_clip_is_new() -> None:
    vision = encoder("eva02_mini_patch14_112", global_pool="token")
    model = clip("eva02_mini_patch16_clip_128")
    report = init_vision_tower(vision.state_dict(), model)
    assert report.resized == {"patch_embed.proj.weight": "[192, 3, 14, 14] to [192, 3, 16, 16]"}
    assert {key for key in report.new if "attn.norm" in key} == {
        f"blocks.{i}.attn.norm.{part}" for i in range(6) for part in ("weight", "bias")
    }


def test_positions_are_resized_as_by_timms_own_loader(tmp_path: Path) -> None:
    vision = encoder(global_pool="token", image_size=64)
    save_vision(vision, tmp_path)
    model = clip()
    report = init_vision_tower(VisionCheckpoint.load(tmp_path), model)
    peer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=32, global_pool="token")
    torch.testing.assert_close(model.module.visual.trunk.pos_embed, peer.pos_embed)
    assert report.resized == {"pos_embed": "[1, 65, 64] to [1, 17, 64]"}


def test_pinv_kernel_responds_to_an_enlarged_patch_as_the_old_kernel_to_the_patch() -> None:
    kernel = torch.randn(5, 3, 14, 14)
    patch = torch.randn(3, 3, 14, 14)
    enlarged = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    response = torch.einsum("bchw,dchw->bd", patch, kernel)
    pinv, bicubic = (
        torch.einsum("bchw,dchw->bd", enlarged, resize_patch_kernel(kernel, (16, 16), method))
        for method in ("pinv", "bicubic")
    )
    torch.testing.assert_close(pinv, response, atol=1e-2, rtol=1e-3)
    assert (bicubic - response).abs().max() > (pinv - response).abs().max()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: encoder(depth=3), r"the encoder has blocks\.2\."),
        (lambda: encoder(depth=1), r"its vision tower has blocks\.1\..*, the encoder does not"),
        (
            lambda: encoder(embed_dim=32),
            r"cls_token of the encoder is \(1, 1, 32\), its vision tower expects \(1, 1, 64\)",
        ),
        (lambda: encoder(scale_mlp=True), r"the encoder has blocks\.0\.mlp\.fc1_g"),
        (lambda: encoder("vit_pico_patch8_32"), "its vision tower does not"),
    ],
)
def test_any_other_difference_is_an_error_and_loads_nothing(source: object, message: str) -> None:
    model = clip()
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    with pytest.raises(UserError, match=message):
        init_vision_tower(source().state_dict(), model)
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


def test_encoder_with_both_norms_does_not_overwrite_one_with_the_other() -> None:
    vision = encoder(global_pool="avg", use_post_transformer_norm=True)
    with pytest.raises(UserError, match=r"fc_norm\.weight"):
        init_vision_tower(vision.state_dict(), clip())


def test_open_clips_own_tower_is_refused() -> None:
    with pytest.raises(UserError, match="open_clip's own"):
        init_vision_tower(encoder().state_dict(), build_clip("ViT-Pico-8-32", seed=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"act_layer": "quick_gelu"},
            "vit_pico_patch8_32 was trained with activation QuickGELU, the tower .* has GELU",
        ),
        ({"act_layer": "relu"}, "trained with activation ReLU"),
        ({"num_heads": 8}, "trained with num_heads 8, the tower vit_pico_patch8_32 has 2"),
    ],
)
def test_encoder_that_computes_something_else_is_refused_although_all_shapes_fit(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    for same in ({}, {"act_layer": "gelu"}, {"act_layer": "gelu_tanh"}):
        init_vision_tower(save_vision(encoder("vit_pico_patch8_32", **same), tmp_path), clip("vit_pico_patch8_32"))
    checkpoint = save_vision(encoder("vit_pico_patch8_32", **arguments), tmp_path)
    with pytest.raises(UserError, match=message):
        init_vision_tower(checkpoint, clip("vit_pico_patch8_32"))
