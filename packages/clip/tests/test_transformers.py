"""Exported folders through transformers' own processors and pipeline: the logits are ours; its own folders are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vfm.models import (
    ClipModel,
    build_clip,
    find_format,
    import_clip,
    load_clip,
    save_clip,
)
from vfm.plugin import UserError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    "quick_gelu": True,
}
TEXTS = ["two red squares", "Don't  PANIC!? 3.5 €", "!", "naïve façade, 犬の写真 🐕", "a " * 30]
LABELS = ["red square", "blue circle", "cat"]


@pytest.fixture(scope="module")
def siglip() -> Iterator[dict[str, Any]]:
    """Return a tiny SigLIP's configuration, whose encoder is registered with timm for these tests."""
    name, module = "vit_tiny_siglip_32", ModuleType("siglip_of_transformers_test")
    size = {"input_size": (3, 32, 32), "num_classes": 0, "fixed_input_size": True, "first_conv": "patch_embed.proj"}
    module.default_cfgs = generate_default_cfgs({name: {**size, "classifier": "head"}})  # type: ignore[attr-defined]
    own = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "class_token": False}
    own |= {"act_layer": "gelu_tanh"}

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(VisionTransformer, name, pretrained, **{**own, "global_pool": "map", **kwargs})

    build.__name__, build.__module__ = name, module.__name__
    sys.modules[module.__name__] = module
    register_model(build)
    text = {"context_length": 64, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "no_causal_mask": True}
    text |= {"pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
    yield {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {**text, "act_kwargs": {"approximate": "tanh"}},
        "custom_text": True,
        "init_logit_bias": -2.0,
    }
    del sys.modules[module.__name__]


def drawn(config: dict[str, Any], **preprocess: object) -> ClipModel:
    model = build_clip(config, seed=0)
    for number, parameter in enumerate(model.module.parameters()):
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    model.preprocess = model.preprocess.model_copy(update=preprocess)
    model.module.eval()
    return model


def photo(side: int = 32) -> Image.Image:
    """Return smooth colours: an image of noise shows the rounding of a resize instead of the resize."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def logits(model: ClipModel, images: list[Image.Image], texts: list[str]) -> Tensor:
    """Return the logits of images and texts, (N, T)."""
    with torch.no_grad():
        found = model.encode_images(images) @ model.encode_texts(texts).T * model.module.logit_scale.exp()
    return found + (model.module.logit_bias if model.module.logit_bias is not None else 0)


def exported(model: ClipModel, folder: Path) -> Path:
    find_format("hf", model, "model").write(model, folder)
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_exported_models_processor_and_pipeline_give_our_logits(
    kind: str, siglip: dict[str, Any], tmp_path: Path
) -> None:
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    model = drawn(CLIP) if kind == "clip" else drawn(siglip, **half)
    folder, side = exported(model, tmp_path / "hf"), model.preprocess.image_size
    peer = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == {"clip": "CLIPProcessor", "siglip": "SiglipProcessor"}[kind]
    ids = processor.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ours = model.tokenize(TEXTS)
    pad = processor.tokenizer.pad_token_id
    assert torch.equal(ids, ours if kind == "siglip" else torch.where((ours == 0) & (ids == pad), pad, ours))
    inputs = processor(
        text=TEXTS, images=[photo(side), photo(50)], padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = peer(**inputs).logits_per_image
    expected = logits(model, [photo(side), photo(50)], TEXTS)
    torch.testing.assert_close(theirs[:1], expected[:1], atol=1e-4, rtol=1e-4)
    # An image that is resized differs by the rounding to bytes: torchvision resizes here, Pillow in our reading.
    torch.testing.assert_close(theirs[1:], expected[1:], atol=0.02, rtol=0.02)
    pipe = transformers.pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    found = {row["label"]: row["score"] for row in pipe(photo(side), candidate_labels=LABELS)}
    row = logits(model, [photo(side)], [f"This is a photo of {label}." for label in LABELS])[0]
    chances = row.softmax(0) if kind == "clip" else row.sigmoid()
    assert [found[label] for label in LABELS] == pytest.approx(chances.tolist(), rel=1e-4)


def test_a_tokenizer_of_hugging_face_is_exported_and_read_again(siglip: dict[str, Any], tmp_path: Path) -> None:
    """A look-alike of SigLIP 2's tokenizer and layout: SiglipModel with Gemma's kind of vocabulary."""
    folder = theirs_folder(tmp_path / "theirs", transformers.SiglipConfig, {"image_size": 32}, transformers.SiglipModel)
    peer = transformers.AutoModel.from_pretrained(folder).eval()
    model = import_clip(str(folder))
    texts = ["a red square", "two blue circles on white"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, padding="max_length", max_length=64, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(model.tokenize(texts), ids)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer(input_ids=ids, pixel_values=pixels).logits_per_image
        image, text, scale, bias = model.module(pixels, model.tokenize(texts))
    torch.testing.assert_close(scale * image @ text.T + bias, expected, atol=1e-4, rtol=1e-4)
    again = load_clip(save_clip(model, tmp_path / "ours"))
    processor = transformers.AutoProcessor.from_pretrained(exported(again, tmp_path / "hf"))
    inputs = processor(text=texts, images=photo(), padding="max_length", return_tensors="pt")
    back = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        found = back(**inputs).logits_per_image
    torch.testing.assert_close(found, logits(model, [photo()], texts), atol=1e-4, rtol=1e-4)
    assert str(tmp_path) not in (tmp_path / "ours" / "open_clip_config.json").read_text()


def test_siglip2_for_images_of_any_shape_is_read_at_the_square_of_its_positions(
    siglip: dict[str, Any], tmp_path: Path
) -> None:
    folder = theirs_folder(tmp_path, transformers.Siglip2Config, {"num_patches": 16}, transformers.Siglip2Model)
    peer = transformers.AutoModel.from_pretrained(folder).eval()
    images = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)(
        [photo(32), photo(64)], return_tensors="pt"
    )
    model = import_clip(str(folder))
    assert model.preprocess.image_size == 32
    texts = ["a red square", "a blue circle"]
    with torch.no_grad():
        expected = peer(input_ids=model.tokenize(texts), **images).logits_per_image
    found = logits(model, [photo(32), photo(64)], texts)
    torch.testing.assert_close(found[:1], expected[:1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1:], expected[1:], atol=0.02, rtol=0.02)


def test_what_transformers_cannot_tokenize_is_refused_in_a_line(siglip: dict[str, Any], tmp_path: Path) -> None:
    text = {**CLIP["text_cfg"], "tokenizer_kwargs": {"clean": "whitespace"}}
    with pytest.raises(UserError, match=r"text_cfg\.tokenizer_kwargs is {'clean': 'whitespace'}"):
        exported(drawn({**CLIP, "text_cfg": text}), tmp_path / "hf")
    far = {**siglip["text_cfg"], "hf_tokenizer_name": str(tmp_path / "missing")}
    with pytest.raises(UserError, match="cannot load its tokenizer") as caught:
        exported(build_clip({**siglip, "text_cfg": far}), tmp_path / "hf")
    assert "\n" not in str(caught.value)


def theirs_folder(folder: Path, config: Any, vision: dict[str, Any], model: Any) -> Path:
    """Save a model of transformers with a tokenizer of SigLIP 2's class."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz", "re", "red", "▁red"]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("r", "e"), ("re", "d"), ("▁", "red")]
    transformers.Siglip2Tokenizer(vocabulary, merges, padding_side="right").save_pretrained(folder)
    tower = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = {**tower, "max_position_embeddings": 64, "vocab_size": len(words), "projection_size": 24}
    made = config(vision_config={**tower, "patch_size": 8, **vision}, text_config={**text, "pad_token_id": 0})
    torch.manual_seed(0)
    peer = model(made)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(std=0.1)
    peer.save_pretrained(folder)
    return folder
