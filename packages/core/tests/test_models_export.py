"""Exports: other libraries must compute the same outputs from them, and a mismatch is a one-line error."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from cli_world import run_here
from vfm.models import (
    ClipModel,
    build_clip,
    build_vision,
    import_clip,
    import_vision,
    load_clip,
    save_clip,
    save_vision,
)
from vfm.models.interchange.hugging_face_siglip import save_siglip, siglip_mismatches
from vfm.models.interchange.onnx_export import TOLERANCE, largest_difference

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save three kinds of checkpoints, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(build_clip("EVA02-Pico-8-32", seed=0), folder / "eva_clip")
    save_clip(build_clip("EVA02-Pico-8-32", seed=0, image_size=64), folder / "larger_clip")
    save_clip(build_clip("ViT-Pico-8-32", seed=0), folder / "vit_clip")
    save_vision(build_vision("eva02_pico_patch8_32", seed=0, num_classes=5), folder / "encoder")
    return folder


def export(model: Path, name: str, out: Path) -> str:
    result = run_here("export", model, "--format", name, "--out", out)
    assert result.code == 0, result.err
    return result.out


@pytest.mark.parametrize(("name", "size"), [("eva_clip", 32), ("larger_clip", 64)])
def test_timm_loads_the_exported_vision_tower_of_a_clip_model(
    name: str, size: int, models: Path, tmp_path: Path
) -> None:
    export(models / name, "timm", tmp_path / "out")
    peer = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, size, size)
    assert torch.equal(peer(pixels), load_clip(models / name).module.visual(pixels))


def test_timm_loads_an_exported_encoder(models: Path, tmp_path: Path) -> None:
    export(models / "encoder", "timm", tmp_path / "out")
    peer = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(peer(PIXELS), import_vision(str(models / "encoder"))(PIXELS))


@pytest.mark.parametrize("name", ["eva_clip", "vit_clip"])
def test_open_clip_loads_an_exported_clip_model(name: str, models: Path, tmp_path: Path) -> None:
    export(models / name, "open_clip", tmp_path / "out")
    peer = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert torch.equal(peer.encode_image(PIXELS), load_clip(models / name).module.encode_image(PIXELS))


def test_folder_in_hugging_faces_layout_can_be_exported_to_another_layout(models: Path, tmp_path: Path) -> None:
    assert "CLIPModel" in export(models / "vit_clip", "hf", tmp_path / "hf")
    export(tmp_path / "hf", "open_clip", tmp_path / "back")
    assert torch.equal(
        load_clip(tmp_path / "back").module.encode_image(PIXELS),
        load_clip(models / "vit_clip").module.encode_image(PIXELS),
    )


@pytest.mark.parametrize("name", ["vit_clip", "encoder"])
def test_safetensors_hold_only_the_weights(name: str, models: Path, tmp_path: Path) -> None:
    export(models / name, "safetensors", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    (source,) = (models / name).glob("*.safetensors")
    written, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(source)
    assert set(written) == set(expected)
    assert all(torch.equal(written[key], expected[key]) for key in expected)


def test_exported_eva_files_import_as_the_same_model(models: Path, tmp_path: Path) -> None:
    output = export(models / "eva_clip", "eva", tmp_path / "clip")
    assert "renamed" in output
    clip = import_clip("EVA02-Pico-8-32", str(tmp_path / "clip" / "model.pt"))
    assert torch.equal(clip.module.encode_image(PIXELS), load_clip(models / "eva_clip").module.encode_image(PIXELS))
    assert torch.equal(
        clip.encode_texts(["a red square"]), load_clip(models / "eva_clip").encode_texts(["a red square"])
    )
    export(models / "encoder", "eva", tmp_path / "encoder")
    encoder = import_vision("eva02_pico_patch8_32", str(tmp_path / "encoder" / "model.pt"))
    assert torch.equal(encoder(PIXELS), import_vision(str(models / "encoder"))(PIXELS))
    keys = json.loads((tmp_path / "encoder" / "keys.json").read_text())
    assert keys["renamed"]["blocks.0.mlp.fc1.weight"] == "blocks.0.mlp.w12.weight"


def run_onnx(file: Path, x: Tensor) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x.numpy()}))


def test_onnx_of_an_encoder_has_equal_outputs_at_any_batch_size(models: Path, tmp_path: Path) -> None:
    output = export(models / "encoder", "onnx", tmp_path / "out")
    assert "vision.onnx: onnxruntime differs from torch by at most" in output
    model, file = import_vision(str(models / "encoder")), tmp_path / "out" / "vision.onnx"
    for count in (1, 2, 3):
        logits, tokens = run_onnx(file, PIXELS[:count])
        np.testing.assert_allclose(logits, model(PIXELS[:count]).detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(tokens, model.forward_features(PIXELS[:count]).detach().numpy(), atol=1e-4)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert facts["preprocess"]["image_size"] == 32

    class Logits(nn.Module):  # the comparison must notice a different model
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return 1.01 * model(x), model.forward_features(x)

    assert largest_difference(Logits(), file, "pixels", [PIXELS]) > TOLERANCE


def test_onnx_of_a_clip_model_has_both_towers_and_the_temperature(models: Path, tmp_path: Path) -> None:
    export(models / "vit_clip", "onnx", tmp_path / "out")
    model = load_clip(models / "vit_clip")
    (image,) = run_onnx(tmp_path / "out" / "image.onnx", PIXELS)
    np.testing.assert_allclose(image, F.normalize(model.module.encode_image(PIXELS), dim=-1).detach(), atol=1e-5)
    texts = ["a red square", "two circles"]
    (text,) = run_onnx(tmp_path / "out" / "text.onnx", model.tokenize(texts))
    np.testing.assert_allclose(text, model.encode_texts(texts), atol=1e-5)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert facts["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "format_name", "message"),
    [
        ("vit_clip", "timm", "its vision tower is open_clip's own; possible formats: open_clip, hf, safetensors, onnx"),
        ("eva_clip", "hf", "not a CLIPModel (its vision tower is not open_clip's ViT) and not a SiglipModel"),
        (
            "encoder",
            "open_clip",
            "a vision encoder without a text tower; possible formats: timm, safetensors, onnx, eva",
        ),
        ("vit_clip", "eva", "its vision tower is open_clip's own"),
        ("vit_clip", "onyx", "no such format; did you mean 'onnx'?"),
        ("vit_clip", "pdf", "no such format; known: eva, hf, llava, onnx, open_clip, safetensors, timm"),
        ("nowhere", "onnx", "no such folder"),
        (".", "onnx", "no model (looked for open_clip_config.json and config.json)"),
    ],
)
def test_mismatch_is_a_one_line_error_and_nothing_is_written(
    name: str, format_name: str, message: str, models: Path, tmp_path: Path
) -> None:
    result = run_here("export", models / name, "--format", format_name, "--out", tmp_path / "out")
    assert result.code == 2
    (line,) = result.errors
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "weights", "key"),
    [
        ("eva_clip", "open_clip_model.safetensors", "text.positional_embedding"),
        ("encoder", "model.safetensors", "head.weight"),
    ],
)
@pytest.mark.parametrize("format_name", ["safetensors", "timm", "hf", "eva", "onnx"])
def test_weights_that_are_not_finite_are_not_exported(
    name: str, weights: str, key: str, format_name: str, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / name, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / weights)
    tensors[key].view(-1)[3] = torch.nan
    save_file(tensors, tmp_path / "model" / weights)
    result = run_here("export", tmp_path / "model", "--format", format_name, "--out", tmp_path / "out")
    assert result.code == 2
    assert result.errors == [f"error: {tmp_path / 'model'}: expected finite weights, got NaN or infinity in {key}"]
    assert not (tmp_path / "out").exists()


def test_encoder_outside_the_eva_layouts_is_refused_with_its_key(tmp_path: Path) -> None:
    arguments = {"architecture": "vit_pico_patch8_32", "reg_tokens": 2}
    save_vision(build_vision(arguments, seed=0), tmp_path / "vit")
    result = run_here("export", tmp_path / "vit", "--format", "eva", "--out", tmp_path / "out")
    assert "it has reg_token, which the official EVA layouts lack" in result.err


def test_existing_folder_is_not_overwritten_and_a_dry_run_writes_nothing(models: Path, tmp_path: Path) -> None:
    command = ("export", models / "encoder", "--format", "timm", "--out", tmp_path / "new" / "out")
    assert "would write" in run_here(*command, "--dry-run").out
    assert list(tmp_path.iterdir()) == []
    assert run_here(*command).code == 0
    result = run_here(*command)
    assert result.code == 2
    assert result.errors == [
        f"error: {tmp_path / 'new' / 'out'} already exists; choose another folder, or remove it first"
    ]


@pytest.fixture(scope="module")
def siglip() -> Iterator[ClipModel]:
    """Build a tiny SigLIP whose encoder is registered with timm for this test."""
    name = "vit_test_siglip_32"
    module = ModuleType("siglip_of_a_test")
    size = {"input_size": (3, 32, 32), "num_classes": 0, "fixed_input_size": True, "first_conv": "patch_embed.proj"}
    module.default_cfgs = generate_default_cfgs({name: {**size, "classifier": "head"}})  # type: ignore[attr-defined]
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False}

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(VisionTransformer, name, pretrained, **{**defaults, "global_pool": "map", **kwargs})

    build.__name__, build.__module__ = name, module.__name__
    sys.modules[module.__name__] = module
    register_model(build)
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, "no_causal_mask": True}
    text |= {
        "pool_type": "last",
        "proj_bias": True,
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    }
    vision = {"image_size": 32, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    config = {"embed_dim": 32, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    model = build_clip(config, seed=0)
    for parameter in model.module.parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    model.module.eval()
    yield model
    del sys.modules[module.__name__]


class PlainSiglip:
    """`SiglipModel` in plain torch, written from its documentation."""

    def __init__(self, folder: Path) -> None:
        self.tensors = load_file(folder / "model.safetensors")
        self.config = json.loads((folder / "config.json").read_text())

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], 1e-6)

    def mlp(self, name: str, x: Tensor, act: str) -> Tensor:
        hidden = F.gelu(self.linear(f"{name}.fc1", x), approximate="tanh" if "tanh" in act else "none")
        return self.linear(f"{name}.fc2", hidden)

    def encoder(self, tower: str, x: Tensor) -> Tensor:
        part = self.config[f"{tower}_config"]
        for layer in range(part["num_hidden_layers"]):
            block = f"{tower}_model.encoder.layers.{layer}."
            h = self.norm(f"{block}layer_norm1", x)
            q, k, v = (self.linear(f"{block}self_attn.{n}_proj", h) for n in "qkv")
            heads = (y.unflatten(-1, (part["num_attention_heads"], -1)).transpose(1, 2) for y in (q, k, v))
            x = x + self.linear(
                f"{block}self_attn.out_proj", F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            )
            x = x + self.mlp(f"{block}mlp", self.norm(f"{block}layer_norm2", x), part["hidden_act"])
        return x

    def image(self, pixels: Tensor) -> Tensor:
        prefix, part = "vision_model.", self.config["vision_config"]
        embed = f"{prefix}embeddings.patch_embedding"
        x = F.conv2d(pixels, self.tensors[f"{embed}.weight"], self.tensors[f"{embed}.bias"], stride=part["patch_size"])
        x = x.flatten(2).transpose(1, 2) + self.tensors[f"{prefix}embeddings.position_embedding.weight"]
        x = self.norm(f"{prefix}post_layernorm", self.encoder("vision", x))
        attention = nn.MultiheadAttention(part["hidden_size"], part["num_attention_heads"], batch_first=True)
        head = f"{prefix}head.attention."
        attention.load_state_dict({k.removeprefix(head): v for k, v in self.tensors.items() if k.startswith(head)})
        pooled = attention(self.tensors[f"{prefix}head.probe"].expand(len(x), -1, -1), x, x)[0]
        return (
            pooled + self.mlp(f"{prefix}head.mlp", self.norm(f"{prefix}head.layernorm", pooled), part["hidden_act"])
        )[:, 0]

    def text(self, ids: Tensor) -> Tensor:
        prefix = "text_model."
        x = self.tensors[f"{prefix}embeddings.token_embedding.weight"][ids]
        x = self.encoder("text", x + self.tensors[f"{prefix}embeddings.position_embedding.weight"])
        return self.linear(f"{prefix}head", self.norm(f"{prefix}final_layer_norm", x)[:, -1])


def test_exported_siglip_has_equal_features_in_plain_torch(siglip: ClipModel, tmp_path: Path) -> None:
    assert siglip_mismatches(siglip) == []
    save_clip(siglip, tmp_path / "ours")
    assert "a SiglipModel" in export(tmp_path / "ours", "hf", tmp_path / "out")
    theirs = PlainSiglip(tmp_path / "out")
    torch.testing.assert_close(theirs.image(PIXELS), siglip.module.encode_image(PIXELS), atol=1e-4, rtol=1e-4)
    ids = siglip.tokenize(["a red square", "two circles"])
    torch.testing.assert_close(theirs.text(ids), siglip.module.encode_text(ids), atol=1e-4, rtol=1e-4)
    assert theirs.tensors["logit_bias"].tolist() == [-10.0]
    assert theirs.config["text_config"]["hidden_act"] == "gelu_pytorch_tanh"
    assert theirs.config["vision_config"]["hidden_act"] == "gelu"


def test_mismatches_with_siglip_are_listed(siglip: ClipModel, tmp_path: Path) -> None:
    causal = build_clip({**siglip.config, "text_cfg": {**siglip.config["text_cfg"], "no_causal_mask": False}}, seed=0)
    assert siglip_mismatches(causal) == ["text_cfg.no_causal_mask is not True"]
    assert siglip_mismatches(build_clip("EVA02-Pico-8-32")) == ["its vision tower is not timm's ViT"]
    with pytest.raises(Exception, match=r"text_cfg\.no_causal_mask is not True"):
        save_siglip(causal, tmp_path)
