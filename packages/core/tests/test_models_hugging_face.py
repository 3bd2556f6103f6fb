"""Hugging Face's layout: the round trip is exact, and plain torch computes the same features from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.models import ClipModel, build_clip
from vfm.models.interchange.hugging_face import from_hugging_face, load_hugging_face, save_hugging_face, to_hugging_face
from vfm.models.interchange.hugging_face_config import mlp_ratio
from vfm.models.transformers_folders.processor import read_processor

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 3.0},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def tiny(**overrides: object) -> ClipModel:
    model = build_clip({**TINY, **overrides}, seed=0)
    model.module.eval()
    for parameter in model.module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def plain_forward(tensors: dict[str, Tensor], config: dict[str, object], tower: str, x: Tensor) -> Tensor:
    """Compute a tower of `CLIPModel` in plain torch, written from its documentation.

    Args:
        x: embeddings before the first block, (B, N, D).
    """
    part = config[f"{tower}_config"]
    prefix, heads = f"{tower}_model.encoder.layers.", part["num_attention_heads"]

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)

    for layer in range(part["num_hidden_layers"]):
        block = f"{prefix}{layer}."
        h = norm(f"{block}layer_norm1", x)
        q, k, v = (linear(f"{block}self_attn.{n}_proj", h).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv")
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=tower == "text").transpose(1, 2).flatten(2)
        x = x + linear(f"{block}self_attn.out_proj", attended)
        h = linear(f"{block}mlp.fc1", norm(f"{block}layer_norm2", x))
        h = h * torch.sigmoid(1.702 * h) if part["hidden_act"] == "quick_gelu" else F.gelu(h)
        x = x + linear(f"{block}mlp.fc2", h)
    return norm({"text": "text_model.final_layer_norm", "vision": "vision_model.post_layernorm"}[tower], x)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("custom_text", [False, True])
def test_exported_model_has_equal_features_in_plain_torch(quick_gelu: bool, custom_text: bool, tmp_path: Path) -> None:
    model = tiny(quick_gelu=quick_gelu, custom_text=custom_text)
    save_hugging_face(model, tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    vision, text = "vision_model.embeddings.", "text_model.embeddings."
    pixels, ids = torch.randn(2, 3, 24, 24), model.tokenize(["a red square", "two circles"])

    patches = F.conv2d(pixels, tensors[f"{vision}patch_embedding.weight"], stride=8).flatten(2).transpose(1, 2)
    tokens = torch.cat([tensors[f"{vision}class_embedding"].expand(2, 1, -1), patches], 1)
    tokens = tokens + tensors[f"{vision}position_embedding.weight"]
    pre = (tensors["vision_model.pre_layrnorm.weight"], tensors["vision_model.pre_layrnorm.bias"])
    image = plain_forward(tensors, config, "vision", F.layer_norm(tokens, (32,), *pre))[:, 0]
    torch.testing.assert_close(image @ tensors["visual_projection.weight"].T, model.module.encode_image(pixels))

    words = tensors[f"{text}token_embedding.weight"][ids] + tensors[f"{text}position_embedding.weight"]
    end = (ids == config["text_config"]["eos_token_id"]).int().argmax(dim=1)
    last = plain_forward(tensors, config, "text", words)[torch.arange(2), end]
    torch.testing.assert_close(last @ tensors["text_projection.weight"].T, model.module.encode_text(ids))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_round_trip_is_exact(quick_gelu: bool, tmp_path: Path) -> None:
    model = tiny(quick_gelu=quick_gelu)
    model.preprocess = model.preprocess.model_copy(
        update={"mean": (0.5, 0.5, 0.5), "resize_mode": "squash", "interpolation": "bilinear"}
    )
    save_hugging_face(model, tmp_path)
    loaded = load_hugging_face(tmp_path)
    for (key, ours), theirs in zip(model.module.state_dict().items(), loaded.module.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key
    assert loaded.preprocess == model.preprocess
    images = [np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)]
    assert torch.equal(loaded.encode_images(images), model.encode_images(images))


@given(width=st.integers(8, 2048), ratio=st.floats(1, 6))
def test_mlp_ratio_restores_every_hidden_width(width: int, ratio: float) -> None:
    hidden = int(width * ratio)
    assert int(width * mlp_ratio(hidden, width)) == hidden


def test_renaming_loses_no_key_and_its_inverse_restores_them() -> None:
    ours = tiny().module.state_dict()
    theirs = to_hugging_face(ours)
    assert len(theirs) == len(ours) + 4 * 2 * 2  # q, k and v of four blocks, weight and bias
    restored = from_hugging_face({**theirs, "text_model.embeddings.position_ids": torch.arange(12)})
    assert set(restored) == set(ours)
    assert all(torch.equal(restored[key], ours[key]) for key in ours)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: build_clip("EVA02-Pico-8-32", seed=0), "not open_clip's ViT"),
        (lambda: tiny(vision_cfg={**TINY["vision_cfg"], "pool_type": "avg"}), "vision_cfg.pool_type is 'avg'"),
        (lambda: tiny(init_logit_bias=-10.0), "logit bias"),
        (lambda: tiny(text_cfg={**TINY["text_cfg"], "vocab_size": 50000}), "text_cfg.vocab_size is 50000"),
        (lambda: tiny(text_cfg={**TINY["text_cfg"], "no_causal_mask": True}), "text_cfg.no_causal_mask is True"),
    ],
)
def test_unsupported_architecture_is_refused_and_nothing_is_written(
    model: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        save_hugging_face(model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_model_types_and_mismatched_weights_are_refused(tmp_path: Path) -> None:
    save_hugging_face(tiny(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("visual_projection.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not fit") as caught:
        load_hugging_face(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="'siglip'"):
        load_hugging_face(tmp_path)


def test_a_processor_with_height_and_width_resizes_both_sides() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"height": 24, "width": 24}
    facts = {"size": size, "crop_size": size, "do_center_crop": True, "resample": 3}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8))
    plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    peer = transformers.CLIPImageProcessor(**facts)(image, **plain)["pixel_values"][0]
    ours = read_processor(facts, 24)
    assert ours.resize_mode == "squash"
    np.testing.assert_allclose(ours.fit(image), peer.transpose(1, 2, 0), atol=1)
