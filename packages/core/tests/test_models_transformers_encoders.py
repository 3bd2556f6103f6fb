"""Encoders of transformers as timm encoders: tiny random models have its features, or an error names the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vfm.base import UserError
from vfm.interfaces import Preflight, Ref
from vfm.models import import_vision, is_vision_source, load_vision, planned_encoder, save_vision, vision_tower
from vfm.models.interchange.descriptions import describe_folder
from vfm.models.interchange.vision_import import check_vision_source
from vfm.models.stages import ImportVision
from vfm.models.transformers_folders.encoders import DEFAULTS, encoder_settings
from vfm.models.vision.planned import import_cost
from vfm.models.vision.vision import class_names_of, vision_preprocess
from vfm.models.vision.vision_towers import read_layers
from vfm.models.weight_transfer import KeyReport

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
MLP = {"intermediate_size": 48}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
NO_BIAS = {"query_bias": False, "value_bias": False, "mlp_bias": False, "proj_bias": False}
CLASSES = {
    "vit": ("ViTConfig", "ViTModel"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel"),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel"),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel"),
}


def save_peer(model_type: str, folder: Path, settings: dict[str, Any], class_name: str = "", **saving: Any) -> Any:
    """Save a tiny model of transformers with random weights, norms and biases included."""
    config_class, default = CLASSES[model_type]
    mlp = {} if model_type.startswith("dinov2") else MLP
    config = getattr(transformers, config_class)(**{**SHAPE, **mlp, **settings})
    peer = getattr(transformers, class_name or default)(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    peer.eval().save_pretrained(folder, **saving)
    return peer


def pixels_of(side: int = 24) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("vit", {}),
        ("vit", {"qkv_bias": False, "hidden_act": "gelu_new", "num_hidden_layers": 3}),
        ("vit", {"layer_norm_eps": 1e-5, "intermediate_size": 47}),
        ("dinov2", {}),
        ("dinov2", {"use_swiglu_ffn": True, "mlp_ratio": 3}),
        ("dinov2_with_registers", {"num_register_tokens": 3}),
        ("dinov3_vit", {"num_register_tokens": 4}),
        ("dinov3_vit", {**GATED, "intermediate_size": 44, "rope_theta": 20.0}),
        ("dinov3_vit", {**NO_BIAS, "num_register_tokens": 1}),
        ("siglip_vision_model", {}),
        ("siglip_vision_model", {"hidden_act": "gelu", "layer_norm_eps": 1e-5}),
        ("siglip_vision_model", {"vision_use_head": False}),
        ("clip_vision_model", {}),
        ("clip_vision_model", {"hidden_act": "gelu"}),
    ],
)
def test_features_are_equal(model_type: str, settings: dict[str, Any], tmp_path: Path) -> None:
    peer = save_peer(model_type, tmp_path / "theirs", settings)
    assert is_vision_source(str(tmp_path / "theirs"), None)
    model = import_vision(str(tmp_path / "theirs"))
    save_vision(model, tmp_path / "ours")
    pixels = pixels_of()
    with torch.inference_mode():
        theirs = peer(pixels, output_hidden_states=True)
        for ours in (model, load_vision(tmp_path / "ours").eval()):
            tower = vision_tower(ours)
            for layer in range(2):
                tokens = read_layers(tower, pixels, [layer])[0]
                both = torch.cat([tokens.prefix, tokens.patches], dim=1)
                torch.testing.assert_close(both, theirs.hidden_states[layer + 1], atol=1e-4, rtol=1e-4)
            pooled = ours.forward_head(ours.forward_features(pixels), pre_logits=True)
            if model_type == "vit":
                torch.testing.assert_close(pooled, theirs.last_hidden_state[:, 0], atol=1e-4, rtol=1e-4)
            elif settings.get("vision_use_head", True):
                torch.testing.assert_close(pooled, theirs.pooler_output, atol=1e-4, rtol=1e-4)
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert torch.equal(by_timm(pixels), model(pixels))


def test_a_classifier_keeps_its_outputs_and_their_names(tmp_path: Path) -> None:
    names = {0: "cat", 1: "dog", 2: "owl"}
    settings = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    peer = save_peer("vit", tmp_path, settings, "ViTForImageClassification", max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = import_vision(str(tmp_path))
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels_of()), peer(pixels_of()).logits, atol=1e-4, rtol=1e-4)
    assert class_names_of(model) == ["cat", "dog", "owl"]


def test_the_projection_of_clip_is_the_head(tmp_path: Path) -> None:
    peer = save_peer("clip_vision_model", tmp_path, {"projection_dim": 7}, "CLIPVisionModelWithProjection")
    with torch.inference_mode():
        ours, theirs = import_vision(str(tmp_path))(pixels_of()), peer(pixels_of()).image_embeds
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "projection"), [("CLIP", 20), ("Siglip", None)])
def test_the_tower_of_a_model_with_texts_is_read(name: str, projection: int | None, tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings: dict[str, Any] = {"vision_config": SHAPE | MLP, "text_config": {**text, "vocab_size": 60}}
    if projection:
        settings["projection_dim"] = projection
    peer = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings)).eval()
    peer.save_pretrained(tmp_path)
    assert not is_vision_source(str(tmp_path), None)  # for an evaluation it is a CLIP model
    report = KeyReport()
    model = import_vision(str(tmp_path), report=report)
    with torch.inference_mode():
        theirs = peer.get_image_features(pixel_values=pixels_of()).pooler_output
    torch.testing.assert_close(model(pixels_of()), theirs, atol=1e-4, rtol=1e-4)
    assert any("text tower" in reason for reason in report.dropped.values())


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("vit", {"hidden_act": "tanh"}, "hidden_act: expected gelu, .*, got 'tanh'"),
        ("vit", {"layer_norm_eps": 1e-3}, "layer_norm_eps: expected 1e-06 or less, or 1e-05, got 0.001"),
        ("vit", {"num_channels": 1}, "num_channels: expected 3, got 1"),
        ("vit", {"image_size": [24, 16]}, r"image_size: expected a square, got \[24, 16\]"),
        ("clip_vision_model", {"layer_norm_eps": 1e-6}, "layer_norm_eps: expected 1e-05, got 1e-06"),
        ("dinov3_vit", {"key_bias": True}, "key_bias: expected false, got true"),
        ("dinov3_vit", {"hidden_act": "silu"}, "hidden_act: expected gelu for an MLP of DINOv3, got 'silu'"),
        ("dinov3_vit", {"use_gated_mlp": True}, "hidden_act: expected silu for a gated MLP of DINOv3, got 'gelu'"),
    ],
)
def test_a_setting_without_a_counterpart_is_refused(
    model_type: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_peer(model_type, tmp_path, settings)
    with pytest.raises(UserError, match=rf"config\.json: {message}") as caught:
        import_vision(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="config"):
        check_vision_source(str(tmp_path), None)


def test_a_model_of_another_type_is_refused_before_it_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(
        UserError, match=r"config\.json: expected an encoder of type vit, dinov2, .* or siglip, got 'resnet'"
    ):
        check_vision_source(str(tmp_path), None)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_peer("vit", tmp_path, {})
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"does not fit its config\.json") as caught:
        import_vision(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "kind", "settings", "edge"),
    [
        ("vit", "ViTImageProcessor", {"size": {"height": 24, "width": 24}}, 24),
        ("dinov3_vit", "DINOv3ViTImageProcessor", {"size": {"height": 24, "width": 24}}, 24),
        ("dinov2", "BitImageProcessor", {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}}, 28),
    ],
)
def test_pixels_are_equal(model_type: str, kind: str, settings: dict[str, Any], edge: int, tmp_path: Path) -> None:
    save_peer(model_type, tmp_path, {})
    processor = getattr(transformers, kind)(**settings)
    processor.save_pretrained(tmp_path)
    save_vision(import_vision(str(tmp_path)), tmp_path / "ours")
    preprocess = vision_preprocess(load_vision(tmp_path / "ours"))
    shapes = [((40, 64), 3 / 255)] + ([((24, 24), 1e-4)] if edge == 24 else [])
    for shape, tolerance in shapes:  # of another size transformers resizes with small differences to PIL
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        ours = preprocess.inputs([image], torch.device("cpu"))
        scale = min(preprocess.std)  # differences are of the pixels before the normalisation
        torch.testing.assert_close(ours * scale, theirs * scale, atol=tolerance, rtol=1e-4)


def test_an_encoder_for_any_size_keeps_the_size_of_its_positions(tmp_path: Path) -> None:
    save_peer("dinov2", tmp_path, {"image_size": 32})
    processor = transformers.BitImageProcessor(size={"shortest_edge": 27}, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(tmp_path)
    preprocess = vision_preprocess(import_vision(str(tmp_path)))
    assert preprocess.image_size == 32
    assert preprocess.crop_pct == pytest.approx(24 / 27)


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_settings_that_a_file_leaves_out_have_the_defaults_of_transformers(model_type: str) -> None:
    _, facts = encoder_settings({"model_type": model_type})
    config = getattr(transformers, CLASSES[model_type][0])()
    unused = {"intermediate_size"} if model_type.startswith("dinov2") else set()
    assert {key: getattr(config, key) for key in facts if key not in unused} == {
        key: value for key, value in facts.items() if key not in unused
    }


def test_a_plan_knows_the_encoder_of_a_folder(tmp_path: Path) -> None:
    save_peer("dinov3_vit", tmp_path, {"num_register_tokens": 4})
    stage = ImportVision(name="teacher", source=str(tmp_path))
    encoder = planned_encoder(Preflight({"teacher": stage}, {}), Ref("teacher"))
    assert vision_tower(encoder).grid == (3, 3)
    assert (
        sum(weight.numel() for weight in encoder.parameters())
        == import_cost(stage, Preflight({"teacher": stage}, {})).parameters
    )


def test_the_doctor_knows_the_folder(tmp_path: Path) -> None:
    save_peer("dinov2", tmp_path / "good", {})
    description = describe_folder(str(tmp_path / "good"))
    assert description
    assert not description.problems
    assert description.model == str(tmp_path / "good")
    assert "an encoder: width 32, 2 blocks, 24 px, patches of 8 px" in description.facts
    save_peer("vit", tmp_path / "bad", {"hidden_act": "tanh"})
    description = describe_folder(str(tmp_path / "bad"))
    assert description
    assert not description.model
    assert "hidden_act" in description.problems[0]
