"""Vision encoders: timm must load what we save, with equal outputs, and preprocess images as we do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from vfm.base import UserError
from vfm.interfaces import VisionCheckpoint
from vfm.models import build_vision, import_vision, load_vision, save_vision, small_models, vision_preprocess


@pytest.mark.parametrize("name", list(small_models.ENCODERS))
def test_small_encoder_takes_images_of_the_size_in_its_name(name: str) -> None:
    model = build_vision(name, seed=0)
    size = vision_preprocess(model).image_size
    assert str(size) == name.rsplit("_", 1)[1]
    features = model.forward_features(torch.zeros(1, 3, size, size))
    assert features.shape == (1, model.patch_embed.num_patches + 1, model.num_features)


@pytest.mark.parametrize("num_classes", [0, 7])
@pytest.mark.parametrize("name", ["eva02_pico_patch8_32", "vit_pico_patch8_32"])
def test_timm_loads_a_saved_encoder_with_equal_outputs(name: str, num_classes: int, tmp_path: Path) -> None:
    model = build_vision(name, image_size=48, num_classes=num_classes, global_pool="token", seed=0).eval()
    checkpoint = save_vision(model, tmp_path)
    peer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(model(images), peer(images))
    assert (checkpoint.image_size, checkpoint.width, checkpoint.num_classes) == (48, 64, num_classes)
    assert torch.equal(load_vision(VisionCheckpoint.load(tmp_path)).eval()(images), peer(images))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_patch16_dinov3", 64),
        ("vit_small_patch14_dinov2", 56),
        ("vit_base_patch16_siglip_224", 64),
        ("beit_base_patch16_224", 64),
        ("vit_pico_patch8_32", 48),
    ],
)
def test_timm_reads_the_image_size_that_an_encoder_was_saved_at(name: str, size: int, tmp_path: Path) -> None:
    model = build_vision(name, image_size=size, num_classes=0, seed=0, depth=1)
    assert save_vision(model, tmp_path).image_size == size
    peer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert resolve_model_data_config(peer)["input_size"] == (3, size, size)
    assert vision_preprocess(load_vision(tmp_path)).image_size == size


def test_a_size_for_tests_stays_with_an_encoder_of_its_own_size(tmp_path: Path) -> None:
    save_vision(build_vision("resnet18.a1_in1k", seed=0), tmp_path)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).pretrained_cfg["test_input_size"] == (
        3,
        288,
        288,
    )


def test_custom_encoder_keeps_its_differences_from_the_architecture(tmp_path: Path) -> None:
    custom = {"architecture": "eva02_pico_patch8_32", "depth": 3, "embed_dim": 32, "scale_mlp": True}
    model = build_vision(custom, seed=0).eval()
    assert save_vision(model, tmp_path).width == 32
    loaded = load_vision(tmp_path).eval()
    assert len(loaded.blocks) == 3
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))


def test_loading_at_another_size_resamples_only_positions(tmp_path: Path) -> None:
    model = build_vision("eva02_pico_patch8_32", seed=0)
    save_vision(model, tmp_path)
    larger = load_vision(tmp_path, image_size=64)
    assert vision_preprocess(larger).image_size == 64
    assert larger.pos_embed.shape == (1, 65, 64)
    assert torch.equal(larger.blocks[1].attn.proj.weight, model.blocks[1].attn.proj.weight)


def test_channels_last_weights_are_saved(tmp_path: Path) -> None:
    model = build_vision("vit_pico_patch8_32", seed=0).to(memory_format=torch.channels_last)
    save_vision(model, tmp_path)
    assert torch.equal(load_vision(tmp_path).patch_embed.proj.weight, model.patch_embed.proj.weight)


@pytest.mark.parametrize("name", ["vit_pico_patch8_32", "resnet18", "vit_small_patch14_dinov2"])
def test_preprocessing_equals_timms(name: str) -> None:
    model = build_vision(name, seed=0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 417, 3), dtype=np.uint8))
    ours = vision_preprocess(model)
    peer = create_transform(**resolve_model_data_config(model), is_training=False)
    torch.testing.assert_close(ours.pixels(ours.fit(image)[None])[0], peer(image), atol=1e-5, rtol=1e-5)


def test_seed_fixes_the_weights() -> None:
    first, second, other = (build_vision("eva02_pico_patch8_32", seed=seed).pos_embed for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("eva02_nano_patch4_23", {}, "did you mean 'eva02_nano_patch4_32'"),
        ("eva02_pico_patch8_32", {"depht": 3}, "depht"),
        ({"architecture": "vit_pico_patch8_32", "embed_dim": 63}, {}, "vit_pico_patch8_32"),
        ("local-dir:nowhere", {"pretrained": True}, "nowhere"),
        ("org/model", {}, "org/model"),
    ],
)
def test_invalid_encoder_is_a_one_line_error(model: object, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_vision(model, **arguments)
    assert "\n" not in str(caught.value)


def test_folder_without_a_valid_encoder_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_vision(tmp_path)
    save_vision(build_vision("vit_pico_patch8_32", seed=0), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(UserError) as caught:
        load_vision(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_weights_are_named_by_their_file(damage: str, tmp_path: Path) -> None:
    save_vision(build_vision("vit_pico_patch8_32", seed=0), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\xff" * 100)
    with pytest.raises(UserError) as error:
        import_vision(str(tmp_path))
    assert str(error.value).startswith(f"{file}: not readable as safetensors: ")
    assert "\n" not in str(error.value)
