"""Exports: what other people's code reads of them gives the same outputs, and what does not fit is one line."""

from __future__ import annotations

import json
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
from safetensors.torch import load_file
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
from vfm.models.hugging_face_siglip import save_siglip, siglip_mismatches
from vfm.models.onnx_export import TOLERANCE, parity

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of three sorts, all of them trained for all that shows."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(build_clip("EVA02-Pico-8-32", seed=0), folder / "eva_clip")
    save_clip(build_clip("EVA02-Pico-8-32", seed=0, image_size=64), folder / "larger_clip")
    save_clip(build_clip("ViT-Pico-8-32", seed=0), folder / "vit_clip")
    save_vision(build_vision("eva02_pico_patch8_32", seed=0, num_classes=5), folder / "encoder")
    return folder


def exported(model: Path, form: str, out: Path) -> str:
    done = run_here("export", model, "--format", form, "--out", out)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.parametrize(("name", "size"), [("eva_clip", 32), ("larger_clip", 64)])
def test_timm_loads_the_vision_tower_of_a_clip_model(name: str, size: int, models: Path, tmp_path: Path) -> None:
    exported(models / name, "timm", tmp_path / "out")
    peer = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, size, size)
    assert torch.equal(peer(pixels), load_clip(models / name).module.visual(pixels))


def test_timm_loads_an_encoder(models: Path, tmp_path: Path) -> None:
    exported(models / "encoder", "timm", tmp_path / "out")
    peer = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(peer(PIXELS), import_vision(str(models / "encoder"))(PIXELS))


@pytest.mark.parametrize("name", ["eva_clip", "vit_clip"])
def test_open_clip_loads_a_clip_model(name: str, models: Path, tmp_path: Path) -> None:
    exported(models / name, "open_clip", tmp_path / "out")
    peer = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert torch.equal(peer.encode_image(PIXELS), load_clip(models / name).module.encode_image(PIXELS))


def test_a_folder_in_hugging_faces_layout_is_read_and_goes_on_to_another(models: Path, tmp_path: Path) -> None:
    assert "CLIPModel" in exported(models / "vit_clip", "hf", tmp_path / "hf")
    exported(tmp_path / "hf", "open_clip", tmp_path / "back")
    assert torch.equal(
        load_clip(tmp_path / "back").module.encode_image(PIXELS),
        load_clip(models / "vit_clip").module.encode_image(PIXELS),
    )


@pytest.mark.parametrize("name", ["vit_clip", "encoder"])
def test_safetensors_hold_the_weights_and_nothing_else(name: str, models: Path, tmp_path: Path) -> None:
    exported(models / name, "safetensors", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    (theirs,) = (models / name).glob("*.safetensors")
    written, there = load_file(tmp_path / "out" / "model.safetensors"), load_file(theirs)
    assert set(written) == set(there)
    assert all(torch.equal(written[key], there[key]) for key in there)


def test_evas_layouts_come_back_as_the_same_model(models: Path, tmp_path: Path) -> None:
    told = exported(models / "eva_clip", "eva", tmp_path / "clip")
    assert "renamed" in told
    clip = import_clip("EVA02-Pico-8-32", str(tmp_path / "clip" / "model.pt"))
    assert torch.equal(clip.module.encode_image(PIXELS), load_clip(models / "eva_clip").module.encode_image(PIXELS))
    assert torch.equal(
        clip.encode_texts(["a red square"]), load_clip(models / "eva_clip").encode_texts(["a red square"])
    )
    exported(models / "encoder", "eva", tmp_path / "encoder")
    encoder = import_vision("eva02_pico_patch8_32", str(tmp_path / "encoder" / "model.pt"))
    assert torch.equal(encoder(PIXELS), import_vision(str(models / "encoder"))(PIXELS))
    keys = json.loads((tmp_path / "encoder" / "keys.json").read_text())
    assert keys["renamed"]["blocks.0.mlp.fc1.weight"] == "blocks.0.mlp.w12.weight"


def ran(file: Path, x: Tensor) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x.numpy()}))


def test_onnx_of_an_encoder_predicts_what_it_predicted_at_any_batch_size(models: Path, tmp_path: Path) -> None:
    told = exported(models / "encoder", "onnx", tmp_path / "out")
    assert "vision.onnx: onnxruntime differs from torch by at most" in told
    model, file = import_vision(str(models / "encoder")), tmp_path / "out" / "vision.onnx"
    for count in (1, 2, 3):
        logits, tokens = ran(file, PIXELS[:count])
        np.testing.assert_allclose(logits, model(PIXELS[:count]).detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(tokens, model.forward_features(PIXELS[:count]).detach().numpy(), atol=1e-4)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert facts["preprocess"]["image_size"] == 32

    class Logits(nn.Module):  # the comparison that the command makes notices another model
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return 1.01 * model(x), model.forward_features(x)

    assert parity(Logits(), file, "pixels", [PIXELS]) > TOLERANCE


def test_onnx_of_a_clip_model_has_both_towers_and_its_temperature(models: Path, tmp_path: Path) -> None:
    exported(models / "vit_clip", "onnx", tmp_path / "out")
    model = load_clip(models / "vit_clip")
    (image,) = ran(tmp_path / "out" / "image.onnx", PIXELS)
    np.testing.assert_allclose(image, F.normalize(model.module.encode_image(PIXELS), dim=-1).detach(), atol=1e-5)
    texts = ["a red square", "two circles"]
    (text,) = ran(tmp_path / "out" / "text.onnx", model.tokenize(texts))
    np.testing.assert_allclose(text, model.encode_texts(texts), atol=1e-5)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert facts["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("vit_clip", "timm", "its vision tower is open_clip's own; formats that fit: open_clip, hf, safetensors, onnx"),
        ("eva_clip", "hf", "no CLIPModel (its vision tower is not open_clip's ViT) and no SiglipModel"),
        (
            "encoder",
            "open_clip",
            "a vision encoder without a text tower; formats that fit: timm, safetensors, onnx, eva",
        ),
        ("vit_clip", "eva", "its vision tower is open_clip's own"),
        ("vit_clip", "onyx", "there are timm, open_clip, hf, safetensors, onnx, eva; did you mean 'onnx'?"),
        ("nowhere", "onnx", "no such folder"),
        (".", "onnx", "no model here (looked for open_clip_config.json and config.json)"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    name: str, form: str, message: str, models: Path, tmp_path: Path
) -> None:
    done = run_here("export", models / name, "--format", form, "--out", tmp_path / "out")
    assert done.code == 2
    (line,) = done.errors
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_eva_has_no_layout_for_is_told_by_its_key(tmp_path: Path) -> None:
    arguments = {"architecture": "vit_pico_patch8_32", "reg_tokens": 2}
    save_vision(build_vision(arguments, seed=0), tmp_path / "vit")
    done = run_here("export", tmp_path / "vit", "--format", "eva", "--out", tmp_path / "out")
    assert "it has reg_token, which the official EVA layouts have not" in done.err


def test_what_is_there_is_not_written_over_and_a_dry_run_writes_nothing(models: Path, tmp_path: Path) -> None:
    words = ("export", models / "encoder", "--format", "timm", "--out", tmp_path / "new" / "out")
    assert "would write" in run_here(*words, "--dry-run").out
    assert list(tmp_path.iterdir()) == []
    assert run_here(*words).code == 0
    done = run_here(*words)
    assert done.code == 2
    assert done.errors == [
        f"error: {tmp_path / 'new' / 'out'} is there already; give another folder, or remove it first"
    ]


@pytest.fixture(scope="module")
def siglip() -> Iterator[ClipModel]:
    """A tiny SigLIP, whose encoder timm builds under a name of this test's."""
    name = "vit_test_siglip_32"
    home = ModuleType("siglip_of_a_test")
    size = {"input_size": (3, 32, 32), "num_classes": 0, "fixed_input_size": True, "first_conv": "patch_embed.proj"}
    home.default_cfgs = generate_default_cfgs({name: {**size, "classifier": "head"}})  # type: ignore[attr-defined]
    own = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False}

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(VisionTransformer, name, pretrained, **{**own, "global_pool": "map", **kwargs})

    build.__name__, build.__module__ = name, home.__name__
    sys.modules[home.__name__] = home
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
    del sys.modules[home.__name__]


class Theirs:
    """`SiglipModel` in plain torch, from its documentation."""

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
        own, part = "vision_model.", self.config["vision_config"]
        embed = f"{own}embeddings.patch_embedding"
        x = F.conv2d(pixels, self.tensors[f"{embed}.weight"], self.tensors[f"{embed}.bias"], stride=part["patch_size"])
        x = x.flatten(2).transpose(1, 2) + self.tensors[f"{own}embeddings.position_embedding.weight"]
        x = self.norm(f"{own}post_layernorm", self.encoder("vision", x))
        attention = nn.MultiheadAttention(part["hidden_size"], part["num_attention_heads"], batch_first=True)
        prefix = f"{own}head.attention."
        attention.load_state_dict({k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)})
        pooled = attention(self.tensors[f"{own}head.probe"].expand(len(x), -1, -1), x, x)[0]
        return (pooled + self.mlp(f"{own}head.mlp", self.norm(f"{own}head.layernorm", pooled), part["hidden_act"]))[
            :, 0
        ]

    def text(self, ids: Tensor) -> Tensor:
        own = "text_model."
        x = self.tensors[f"{own}embeddings.token_embedding.weight"][ids]
        x = self.encoder("text", x + self.tensors[f"{own}embeddings.position_embedding.weight"])
        return self.linear(f"{own}head", self.norm(f"{own}final_layer_norm", x)[:, -1])


def test_a_siglip_model_read_their_way_is_ours(siglip: ClipModel, tmp_path: Path) -> None:
    assert siglip_mismatches(siglip) == []
    save_clip(siglip, tmp_path / "ours")
    assert "a SiglipModel" in exported(tmp_path / "ours", "hf", tmp_path / "out")
    theirs = Theirs(tmp_path / "out")
    torch.testing.assert_close(theirs.image(PIXELS), siglip.module.encode_image(PIXELS), atol=1e-4, rtol=1e-4)
    ids = siglip.tokenize(["a red square", "two circles"])
    torch.testing.assert_close(theirs.text(ids), siglip.module.encode_text(ids), atol=1e-4, rtol=1e-4)
    assert theirs.tensors["logit_bias"].tolist() == [-10.0]
    assert theirs.config["text_config"]["hidden_act"] == "gelu_pytorch_tanh"
    assert theirs.config["vision_config"]["hidden_act"] == "gelu"


def test_a_model_that_is_no_siglip_says_why(siglip: ClipModel, tmp_path: Path) -> None:
    causal = build_clip({**siglip.config, "text_cfg": {**siglip.config["text_cfg"], "no_causal_mask": False}}, seed=0)
    assert siglip_mismatches(causal) == ["text_cfg.no_causal_mask is not True"]
    assert siglip_mismatches(build_clip("EVA02-Pico-8-32")) == ["its vision tower is not timm's ViT"]
    with pytest.raises(Exception, match=r"text_cfg\.no_causal_mask is not True"):
        save_siglip(causal, tmp_path)
