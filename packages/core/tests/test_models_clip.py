"""CLIP models: open_clip must load what we save, with equal features, and preprocess images as we do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional as F

from vfm.base import UserError
from vfm.interfaces import ClipCheckpoint
from vfm.models import (
    ClipModel,
    Preprocess,
    build_clip,
    load_clip,
    open_clip_incompatibility,
    save_clip,
    save_vision,
    small_models,
    vision_tower,
)

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 24, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TEXTS = ["a red square", "two blue circles"]


def images(num: int = 3, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (40 + 3 * i, 57 - i, 3), dtype=np.uint8) for i in range(num)]


@pytest.mark.parametrize("name", ["ViT-Pico-8-32", "EVA02-Pico-8-32"])
def test_open_clip_loads_a_saved_model_with_equal_features(name: str, tmp_path: Path) -> None:
    model = build_clip(name, seed=1)
    save_clip(model, tmp_path)
    peer, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    peer.eval()
    with torch.no_grad():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images()])
        image_features, text_features = (
            peer.encode_image(pixels, normalize=True),
            peer.encode_text(tokens, normalize=True),
        )
    torch.testing.assert_close(model.encode_images(images()), image_features)
    torch.testing.assert_close(model.encode_texts(TEXTS), text_features)


@pytest.mark.parametrize("model", ["ViT-Pico-8-32", "EVA02-Pico-8-32", TINY])
def test_save_and_load_keep_weights_and_configuration(model: str | dict[str, object], tmp_path: Path) -> None:
    built = build_clip(model, seed=2, init_logit_scale=1.5)
    built.preprocess = built.preprocess.model_copy(update={"mean": (0.5, 0.5, 0.5), "resize_mode": "squash"})
    checkpoint = save_clip(built, tmp_path)
    loaded = load_clip(ClipCheckpoint.load(tmp_path))
    assert (loaded.preprocess, loaded.config, loaded.name) == (built.preprocess, built.config, built.name)
    assert (checkpoint.embed_dim, checkpoint.context_length) == (loaded.embed_dim, loaded.context_length)
    for (key, ours), theirs in zip(built.module.state_dict().items(), loaded.module.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize(
    ("encoder", "size", "equal"),
    [
        ("vit_pico_patch8_32", 32, True),
        ("vit_pico_patch8_32", 64, True),
        ("vit_pico_patch8_32", 48, False),  # timm has no such encoder of this size
        ("eva02_pico_patch8_32", 64, False),  # timm has one, with other rotary positions
        ("eva02_nano_patch8_64", 48, False),
        ("resnet10t", 96, True),  # accepts any size
    ],
)
def test_resized_timm_tower_reloads_at_its_size_in_open_clip_too_if_timm_has_an_equal_encoder(
    encoder: str, size: int, equal: bool, tmp_path: Path
) -> None:
    pooled = {"timm_pool": "avg", "timm_proj": "linear"} if encoder == "resnet10t" else {"timm_pool": "token"}
    vision = {"image_size": 32, "timm_model_name": encoder, "timm_proj": None, **pooled}
    model = build_clip({**TINY, "vision_cfg": vision, "custom_text": True}, image_size=size, seed=0)
    checkpoint = save_clip(model, tmp_path)
    assert checkpoint.image_size == model.preprocess.image_size == size
    features = model.encode_images(images())
    assert torch.equal(load_clip(checkpoint).encode_images(images()), features)
    assert (open_clip_incompatibility(model) == "") == equal
    if not equal:
        assert f"{encoder} only at the size in its name" in open_clip_incompatibility(model)
        with pytest.raises(RuntimeError, match="size mismatch"):
            open_clip.create_model(f"local-dir:{tmp_path}")
        return
    peer, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    with torch.no_grad():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images()])
        torch.testing.assert_close(peer.eval().encode_image(pixels, normalize=True), features)


@pytest.mark.parametrize("name", ["ViT-Pico-8-32", "EVA02-Pico-8-32"])
def test_checkpoint_loaded_at_another_size_equals_open_clips_or_timms_resized_model(name: str, tmp_path: Path) -> None:
    built = build_clip(name, seed=3)
    checkpoint = save_clip(built, tmp_path / "small")
    model = load_clip(checkpoint, image_size=64)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if name.startswith("ViT"):
            peer = open_clip.create_model(f"local-dir:{tmp_path / 'small'}", force_image_size=64).eval().visual
        else:  # positions are resampled, rotary ones computed for the larger grid at the smaller grid's scale
            trunk = built.module.visual.trunk
            save_vision(trunk, tmp_path / "trunk")
            peer = timm.create_model(f"local-dir:{tmp_path / 'trunk'}", pretrained=True, img_size=64).eval()
        torch.testing.assert_close(model.module.visual(pixels), peer(pixels))
    assert model.preprocess.image_size == model.config["vision_cfg"]["image_size"] == 64
    again = load_clip(save_clip(model, tmp_path / "large"))
    assert torch.equal(again.encode_images(images()), model.encode_images(images()))
    with pytest.raises(UserError, match="not a multiple of its patch size 8"):
        load_clip(checkpoint, image_size=60)


def test_training_noise_is_in_the_module_but_not_in_the_saved_configuration(tmp_path: Path) -> None:
    noise = {"patch_dropout": 0.5, "timm_drop_path": 0.1}
    plain, noisy = (build_clip("EVA02-Pico-8-32", seed=3, noise=noise_or_none) for noise_or_none in (None, noise))
    assert noisy.config == plain.config
    assert torch.equal(noisy.encode_images(images()), plain.encode_images(images()))
    loaded = load_clip(save_clip(noisy, tmp_path), noise=noise)
    pixels = torch.randn(2, 3, 32, 32)
    for model, deterministic in ((plain, True), (noisy, False), (loaded, False), (load_clip(tmp_path), True)):
        visual = model.module.visual.train()
        assert torch.equal(visual(pixels), visual(pixels)) == deterministic


def test_projection_of_a_timm_tower_is_initialised_with_open_clips_deviation() -> None:
    timm_tower, own_tower = (build_clip(f"{family}-Pico-8-32", seed=0).module.visual for family in ("EVA02", "ViT"))
    assert timm_tower.trunk.head.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert own_tower.proj.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not timm_tower.trunk.head.bias.any()


def test_embeddings_have_unit_length_at_any_batch_size_and_training_mode_is_restored() -> None:
    model = build_clip(TINY, seed=0)
    model.module.train()
    whole, one_by_one = model.encode_images(images(5)), model.encode_images(images(5), batch_size=1)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(whole, one_by_one)
    torch.testing.assert_close(model.encode_texts(TEXTS), model.encode_texts(TEXTS, batch_size=1))
    assert model.module.training
    assert model.encode_texts([]).shape == (0, 16)


def test_seed_fixes_the_weights_and_leaves_torchs_generator_unchanged() -> None:
    before = torch.get_rng_state()
    first, second, third = (build_clip(TINY, seed=seed).module.state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["visual.conv1.weight"], second["visual.conv1.weight"])
    assert not torch.equal(first["visual.conv1.weight"], third["visual.conv1.weight"])


@pytest.mark.parametrize("size", [(32, 32), (64, 40), (41, 77), (33, 20), (20, 99)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_equals_open_clips(size: tuple[int, int], resize_mode: str, interpolation: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    ours = Preprocess(image_size=32, resize_mode=resize_mode, interpolation=interpolation)
    peer = image_transform_v2(
        PreprocessCfg(size=32, resize_mode=resize_mode, interpolation=interpolation), is_train=False
    )
    torch.testing.assert_close(ours.pixels(ours.fit(image)[None])[0], peer(image), atol=1e-6, rtol=1e-6)


def test_a_very_wide_image_that_is_padded_keeps_a_line() -> None:
    wide = Preprocess(image_size=32, resize_mode="longest").fit(Image.new("RGB", (3000, 30), "white"))
    assert (wide.shape, (wide == 255).all(axis=(1, 2)).sum()) == ((32, 32, 3), 1)


def test_both_layouts_of_a_batch_give_equal_pixels_and_other_dtypes_are_refused() -> None:
    preprocess = Preprocess(image_size=8)
    batch = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(preprocess.pixels(batch), preprocess.pixels(batch.permute(0, 3, 1, 2).numpy()))
    with pytest.raises(ValueError, match="expected uint8 images"):
        preprocess.pixels(batch.float())


def test_grey_and_transparent_images_are_read_as_rgb() -> None:
    model = build_clip(TINY, seed=0)
    grey = Image.fromarray(images(1)[0]).convert("L")
    features = model.encode_images([grey, grey.convert("RGB"), grey.convert("RGBA"), grey.convert("P")])
    torch.testing.assert_close(features, features[:1].expand(4, -1))


def test_long_text_is_cut_but_keeps_its_end_token() -> None:
    tokens = build_clip(TINY, seed=0).tokenize(["word " * 50, "short"])
    assert tokens.shape == (2, 12)
    assert tokens[0, -1] == tokens.max() == 49407


def test_embeddings_can_be_used_in_a_backward_pass() -> None:
    features = build_clip(TINY, seed=0).encode_texts(TEXTS)
    weight = torch.ones(16, requires_grad=True)
    F.normalize(features * weight, dim=1).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("ViT-Nano-4-23", {}, "did you mean 'ViT-Nano-4-32'"),
        ("ViT-Pico-8-32", {"image_size": 33}, "not a multiple of its patch size 8"),
        ("EVA02-Pico-8-32", {"image_size": 33}, "not a multiple of its patch size 8"),
        ({**TINY, "vision_cfg": {"widht": 3}}, {}, "vision_cfg.widht: unknown key; did you mean 'width'"),
        ({**TINY, "vision_cfg": {"timm_model_name": "eva02_nano"}}, {}, "eva02_nano"),
        ({"embed_dim": 3, "vision_cfg": {}}, {}, "needs 'text_cfg'"),
        (TINY, {"quick_glu": True}, "quick_glu: unknown key; did you mean 'quick_gelu'"),
        ({**TINY, "text_cfg": {**TINY["text_cfg"], "layers": 0}}, {}, "CLIP model 'custom': "),
        ({**TINY, "text_cfg": {**TINY["text_cfg"], "layers": 10**18}}, {}, "text_cfg.layers: expected at most 1,000"),
        ({**TINY, "text_cfg": "small"}, {}, "text_cfg: expected a mapping of open_clip's keys to values, got 'small'"),
        ("local-dir:nowhere", {}, "nowhere"),
    ],
)
def test_invalid_configuration_is_a_one_line_error(model: object, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_clip(model, **arguments)
    assert "\n" not in str(caught.value)


def test_folder_without_a_valid_checkpoint_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"open_clip_config\.json is missing"):
        load_clip(tmp_path)
    save_clip(build_clip(TINY, seed=0), tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors") as caught:
        load_clip(tmp_path)
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(UserError, match="no weights "):
        load_clip(tmp_path)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    save_clip(build_clip(TINY, seed=0), tmp_path)
    wider = build_clip({**TINY, "embed_dim": 24}, seed=0)
    save_clip(wider, tmp_path / "wider")
    (tmp_path / "wider" / "open_clip_model.safetensors").write_bytes(
        (tmp_path / "open_clip_model.safetensors").read_bytes()
    )
    with pytest.raises(UserError, match="does not fit"):
        load_clip(tmp_path / "wider")


def test_to_returns_the_model_itself() -> None:
    model = build_clip("ViT-Pico-8-32", seed=0)
    assert isinstance(model.to("cpu"), ClipModel)
    assert (model.name, model.device.type) == ("ViT-Pico-8-32", "cpu")


@pytest.mark.parametrize(
    "name", sorted(file.stem for file in (Path(small_models.__file__).parent / "configs").glob("*.json"))
)
def test_small_clip_model_has_the_sizes_in_its_name(name: str) -> None:
    model = build_clip(name, seed=0)
    family, _, patch, image = name.split("-")
    tower = vision_tower(model)
    assert tower.grid == (int(image) // int(patch), int(image) // int(patch))
    assert model.preprocess.image_size == int(image)
    assert hasattr(model.module.visual, "trunk") == (family == "EVA02")
    assert model.encode_images(images(1)).shape == model.encode_texts(TEXTS[:1]).shape
