"""Folders that transformers writes: tiny random models have its features, or are refused by the setting's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.models import import_clip, load_clip, save_clip
from vfm.models.clip.clip import open_clip_incompatibility

transformers = pytest.importorskip("transformers")
tiny_siglip = pytest.importorskip("import_zoo").tiny_siglip

SIDE, LENGTH = 24, 12
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": 8}
TEXT = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"max_position_embeddings": LENGTH}
GELU, TANH, EPS = {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}, {"layer_norm_eps": 1e-2}
SMALL_VOCABULARY = {"vocab_size": 60, "eos_token_id": 7, "bos_token_id": 5, "pad_token_id": 7}


def randomized(peer: Any) -> Any:
    for parameter in peer.parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.2)
    return peer.eval()


def texts(vocab_size: int, end: int) -> Tensor:
    """Draw token ids that end in the end token, with padding that is also the end token."""
    ids = torch.randint(8, min(vocab_size, 1000), (3, LENGTH))
    for row, length in zip(ids, (5, 8, LENGTH), strict=True):
        row[length - 1 :] = end
    return ids


def assert_equal_features(folder: Path, peer: Any, ids: Tensor) -> None:
    model = import_clip(str(folder))
    pixels = torch.randn(3, 3, peer.config.vision_config.image_size, peer.config.vision_config.image_size)
    with torch.inference_mode():
        theirs = peer(input_ids=ids, pixel_values=pixels)
        image, text = model.module.encode_image(pixels), model.module.encode_text(ids)
    torch.testing.assert_close(F.normalize(image, dim=-1), theirs.image_embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(F.normalize(text, dim=-1), theirs.text_embeds, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shard", ["1GB", "100KB"])
@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {}),
        (GELU, GELU),
        (TANH, TANH),
        (TANH, GELU),
        (EPS, {}),
        ({}, EPS),
        ({**GELU, **EPS}, {**TANH, **EPS}),
        ({}, {"eos_token_id": 2}),
        ({}, SMALL_VOCABULARY),
    ],
)
def test_clip_has_the_features_of_transformers(
    vision: dict[str, Any], text: dict[str, Any], shard: str, tmp_path: Path
) -> None:
    config = transformers.CLIPConfig(vision_config=VISION | vision, text_config=TEXT | text, projection_dim=20)
    peer = randomized(transformers.CLIPModel(config))
    peer.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "100KB")
    end = text.get("eos_token_id", 49407)
    assert_equal_features(tmp_path, peer, texts(config.text_config.vocab_size, 49407 if end == 2 else end))


@pytest.fixture(scope="module")
def siglip_encoder() -> Iterator[None]:
    with tiny_siglip():
        yield


SIGLIP_TEXT = {**TEXT, "hidden_size": 32, "vocab_size": 60}


@pytest.mark.usefixtures("siglip_encoder")
@pytest.mark.parametrize(("vision", "text"), [({}, {}), (GELU, GELU), (GELU, TANH), ({}, EPS)])
def test_siglip_has_the_features_of_transformers(vision: dict[str, Any], text: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.SiglipConfig(vision_config=VISION | vision, text_config=SIGLIP_TEXT | text)
    peer = randomized(transformers.SiglipModel(config))
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert_equal_features(tmp_path / "theirs", peer, texts(60, 1))
    model = import_clip(str(tmp_path / "theirs"))
    assert bool(open_clip_incompatibility(model)) == (vision != GELU)
    save_clip(model, tmp_path / "ours")
    pixels = torch.randn(2, 3, SIDE, SIDE)
    saved = load_clip(tmp_path / "ours")
    assert torch.equal(saved.module.encode_image(pixels), model.module.encode_image(pixels))


@pytest.mark.usefixtures("siglip_encoder")
@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ({"hidden_act": "quick_gelu"}, {}, "hidden_act: expected gelu or gelu_pytorch_tanh, got 'quick_gelu'"),
        ({}, {"hidden_act": "relu"}, "hidden_act: .* got 'relu'"),
        (EPS, {}, "layer_norm_eps 0.01"),
        ({"vision_use_head": False}, {}, "does not fit"),
        ({}, {"projection_size": 8}, "does not fit"),
    ],
)
def test_other_siglips_are_refused_by_name(
    vision: dict[str, Any], text: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = transformers.SiglipConfig(vision_config=VISION | vision, text_config=SIGLIP_TEXT | text)
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        import_clip(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT | SMALL_VOCABULARY, projection_dim=20)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


SQUARE = {"height": SIDE, "width": SIDE}
SHORTEST = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}


@pytest.mark.parametrize("nested", [True, False], ids=["processor_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("kind", "settings", "refused"),
    [
        ("CLIPImageProcessor", SHORTEST, ""),
        ("CLIPImageProcessor", {**SHORTEST, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, ""),
        ("CLIPImageProcessor", {**SHORTEST, "do_normalize": False}, ""),
        ("CLIPImageProcessor", {**SHORTEST, "rescale_factor": 1 / 127.5}, ""),
        ("CLIPImageProcessor", {**SHORTEST, "do_rescale": False}, ""),
        ("CLIPImageProcessor", {**SHORTEST, "resample": 2}, ""),
        ("CLIPImageProcessor", {"size": SQUARE, "crop_size": SQUARE}, ""),
        ("CLIPImageProcessor", {**SHORTEST, "size": {"shortest_edge": SIDE + 8}}, "size"),
        ("CLIPImageProcessor", {**SHORTEST, "size": {"height": SIDE, "width": SIDE + 8}}, "size"),
        ("CLIPImageProcessor", {**SHORTEST, "crop_size": {"height": 16, "width": 16}}, "crop_size"),
        ("CLIPImageProcessor", {**SHORTEST, "do_center_crop": False}, "size"),
        ("CLIPImageProcessor", {**SHORTEST, "do_resize": False}, "do_resize"),
        ("CLIPImageProcessor", {**SHORTEST, "resample": 0}, "resample"),
        ("SiglipImageProcessor", {"size": SQUARE}, ""),
        ("ViTImageProcessor", {"size": SQUARE}, ""),
    ],
)
def test_pixels_are_those_of_the_image_processor_or_its_setting_is_refused(
    kind: str, settings: dict[str, Any], refused: str, nested: bool, clip_folder: Path
) -> None:
    processor = getattr(transformers, kind)(**settings)
    record = json.loads(processor.to_json_string())
    for name in ("processor_config.json", "preprocessor_config.json"):
        (clip_folder / name).unlink(missing_ok=True)
    if nested:
        (clip_folder / "processor_config.json").write_text(json.dumps({"image_processor": record}))
        (clip_folder / "preprocessor_config.json").write_text('{"do_normalize": false}')  # not read then
    else:
        (clip_folder / "preprocessor_config.json").write_text(json.dumps(record))
    if refused:
        with pytest.raises(UserError, match=rf"processor_config\.json: {refused}: ") as caught:
            import_clip(str(clip_folder))
        assert "\n" not in str(caught.value)
        return
    preprocess = import_clip(str(clip_folder)).preprocess
    # Of the model's size, and of another, which transformers resizes with small differences to PIL.
    for shape, tolerance in (((SIDE, SIDE), 1e-4), ((40, 64), 3 / 255)):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        ours = preprocess.inputs([image], torch.device("cpu"))
        scale = min(preprocess.std)  # differences are of the pixels before the normalisation
        torch.testing.assert_close(ours * scale, theirs * scale, atol=tolerance, rtol=1e-4)


def test_the_folders_own_tokenizer_is_used(clip_folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["[UNK]", "a", "red", "square", "of", "<s>", "photo", "</s>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<s>", words["<s>"]), ("</s>", words["</s>"])]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    special = {"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    peer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    peer.save_pretrained(clip_folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (clip_folder / name).unlink(missing_ok=True)
    texts = ["a red square", "photo of a red dog"]
    theirs = peer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
    model = import_clip(str(clip_folder))
    assert torch.equal(model.tokenize(texts), theirs)


def test_an_index_names_files_of_its_own_folder_only(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(UserError, match=r"weight_map: expected names of files in its folder, got '\.\./model"):
        import_clip(str(tmp_path))
