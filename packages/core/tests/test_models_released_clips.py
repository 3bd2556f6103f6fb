"""Released checkpoints of DIVA, GenHancer and un2CLIP, as look-alikes of every layout: features arrive unchanged."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vfm.base import UserError
from vfm.eval.choices.stages import MmvpVlm
from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import ClipCheckpoint, Context, load_plugins, stage_types
from vfm.models import (
    ClipModel,
    KeyReport,
    build_clip,
    import_clip,
    load_clip,
    save_clip,
)
from vfm.models.interchange.eva_import import ReadOptions
from vfm.models.interchange.hugging_face import save_hugging_face
from vfm.models.interchange.hugging_face_siglip import save_siglip
from vfm.models.interchange.hugging_face_siglip_import import load_siglip
from vfm.models.stages import ImportClip

IMAGES = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
VISION = {"image_size": 24, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
SIGLIP_TEXT |= {"act_kwargs": {"approximate": "tanh"}}
BACKBONES = ("openai", "dfn", "siglip")  # MetaCLIP's keys are those of DFN


@pytest.fixture(scope="module")
def architectures() -> Iterator[dict[str, dict[str, Any]]]:
    """Return tiny configurations with the keys of the backbones; a SigLIP encoder is registered with timm."""
    name, module = "vit_released_siglip_32", ModuleType("released_siglip_of_a_test")
    size = {"input_size": (3, 32, 32), "num_classes": 0, "fixed_input_size": True, "first_conv": "patch_embed.proj"}
    module.default_cfgs = generate_default_cfgs({name: {**size, "classifier": "head"}})  # type: ignore[attr-defined]
    own = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "class_token": False,
        "act_layer": "gelu_tanh",
    }

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(VisionTransformer, name, pretrained, **{**own, "global_pool": "map", **kwargs})

    build.__name__, build.__module__ = name, module.__name__
    sys.modules[module.__name__] = module
    register_model(build)
    siglip = {"image_size": 32, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    plain = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
    yield {
        "openai": plain,
        "dfn": {**plain, "vision_cfg": {**VISION, "patch_size": 4}},
        "siglip": {
            "embed_dim": 24,
            "vision_cfg": siglip,
            "text_cfg": SIGLIP_TEXT,
            "custom_text": True,
            "init_logit_bias": -10.0,
        },
    }
    del sys.modules[module.__name__]


def made(config: dict[str, Any], seed: int) -> ClipModel:
    model = build_clip(config, seed=seed)
    for parameter in model.module.parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed + parameter.numel()))
    if "logit_bias" in model.module.state_dict():
        model.preprocess = model.preprocess.model_copy(
            update={"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
        )
    model.module.eval()
    return model


def tuned(original: ClipModel) -> ClipModel:
    """Return a model that differs in its vision tower."""
    other = made(original.config, seed=1)
    towers = {key: value for key, value in other.module.state_dict().items() if key.startswith("visual.")}
    other.module.load_state_dict({**original.module.state_dict(), **towers})
    other.preprocess = original.preprocess
    return other


def diva_script(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what DIVA's script saves: the CLIP model under a prefix, and everything else of its module."""
    others = [
        "class_model.final_fc.weight", "visual_proj.weight", "visual_proj.bias", "unet.conv_in.weight",
        "unet.mid_block.attentions.0.proj_in.weight", "vae.encoder.conv_in.weight",
        "text_encoder.text_model.final_layer_norm.weight",
    ]  # fmt: skip
    return {f"class_model.model.{key}": value for key, value in state.items()} | {key: torch.ones(2) for key in others}


FILES = {
    "plain": lambda state: state,
    "diva script": diva_script,
    "model.": lambda state: {f"model.{key}": value for key, value in state.items()},
    "module.class_model": lambda state: {f"module.{key}": value for key, value in diva_script(state).items()},
    "beside others": lambda state: {**state, "unet.conv_in.weight": torch.ones(2)},
}


@pytest.mark.parametrize(
    ("backbone", "layout", "dtype"),
    [
        *((backbone, layout, torch.float32) for backbone in BACKBONES for layout in ("plain", "diva script")),
        *(("openai", layout, torch.float16) for layout in FILES),
    ],
)
def test_a_file_of_diva_gives_the_tuned_models_features(
    backbone: str, layout: str, dtype: torch.dtype, architectures: dict[str, Any], tmp_path: Path
) -> None:
    original = made(architectures[backbone], seed=0)
    expected = tuned(original)
    with torch.no_grad():
        for parameter in expected.module.parameters():  # so that rounding changes nothing
            parameter.copy_(parameter.to(dtype).float())
    state = {key: value.to(dtype) for key, value in expected.module.state_dict().items()}
    torch.save(FILES[layout](state), tmp_path / "released.pth")
    report = KeyReport()
    loaded = import_clip(
        architectures[backbone], str(tmp_path / "released.pth"), ReadOptions(text_from=original), report
    )
    torch.testing.assert_close(loaded.encode_images(IMAGES), expected.encode_images(IMAGES), atol=1e-6, rtol=0)
    texts = ["a red square", "two circles"]
    assert torch.equal(loaded.encode_texts(texts), original.encode_texts(texts))
    assert loaded.preprocess == original.preprocess
    if layout == "diva script":
        assert len(report.renamed) == len(state)
        assert "unet.conv_in.weight" in report.dropped
        assert len(report.dropped) == 7


@pytest.mark.parametrize(
    ("backbone", "prefix"),
    [
        *((backbone, prefix) for backbone in BACKBONES for prefix in ("", "visual.")),
        ("siglip", "visual.trunk."),
    ],
)
def test_a_vision_tower_alone_is_completed_by_the_model_it_was_tuned_from(
    backbone: str, prefix: str, architectures: dict[str, Any], tmp_path: Path
) -> None:
    original = made(architectures[backbone], seed=0)
    expected = tuned(original)
    tower = {key: value for key, value in expected.module.state_dict().items() if key.startswith("visual.")}
    torch.save({key.removeprefix(prefix): value for key, value in tower.items()}, tmp_path / "v.pth")
    loaded = import_clip(architectures[backbone], str(tmp_path / "v.pth"), ReadOptions(text_from=original))
    assert torch.equal(loaded.encode_images(IMAGES), expected.encode_images(IMAGES))
    assert torch.equal(loaded.encode_texts(["a red square"]), original.encode_texts(["a red square"]))
    with pytest.raises(UserError, match="has no text tower; set text_from") as caught:
        import_clip(architectures[backbone], str(tmp_path / "v.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_file_without_a_logit_scale_is_one_line_and_read_with_that_of_another_model(
    backbone: str, architectures: dict[str, Any], tmp_path: Path
) -> None:
    original = made(architectures[backbone], seed=0)
    expected = tuned(original)
    state = expected.module.state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("logit_")}, tmp_path / "v.pth")
    with pytest.raises(UserError, match=r"v\.pth: has no logit_scale; set text_from to the CLIP model") as caught:
        import_clip(architectures[backbone], str(tmp_path / "v.pth"))
    assert "\n" not in str(caught.value)
    loaded = import_clip(architectures[backbone], str(tmp_path / "v.pth"), ReadOptions(text_from=original))
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_folder_of_genhancer_gives_the_tuned_models_features(
    backbone: str, architectures: dict[str, Any], tmp_path: Path
) -> None:
    original = made(architectures[backbone], seed=0)
    expected = tuned(original)
    (save_siglip if backbone == "siglip" else save_hugging_face)(expected, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()  # `save_pretrained` of a model writes none
    loaded = import_clip(str(tmp_path), None, ReadOptions(text_from=original))
    torch.testing.assert_close(loaded.encode_images(IMAGES), expected.encode_images(IMAGES), atol=1e-6, rtol=0)
    assert torch.equal(import_clip(str(tmp_path)).encode_images(IMAGES), loaded.encode_images(IMAGES))


def test_siglip_is_read_as_it_is_written(architectures: dict[str, Any], tmp_path: Path) -> None:
    model = made(architectures["siglip"], seed=0)
    save_siglip(model, tmp_path)
    loaded = load_siglip(tmp_path)
    ours, theirs = model.module.state_dict(), loaded.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert loaded.preprocess == model.preprocess
    assert torch.equal(loaded.encode_texts(["a red square"]), model.encode_texts(["a red square"]))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(12)}, tmp_path / "model.safetensors")
    load_siglip(tmp_path)
    tensors.pop("vision_model.head.probe")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"does not fit its config.json: 'vision_model.head.probe'"):
        load_siglip(tmp_path)


def test_siglip_of_transformers_has_equal_features(architectures: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = {**tower, "max_position_embeddings": 12, "vocab_size": 49408, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 8}, text_config={**text, "pad_token_id": 0}
    )
    torch.manual_seed(0)
    theirs = transformers.SiglipModel(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_siglip(tmp_path)
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(1, 49408, (2, 12))
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=pixels)
        image = torch.nn.functional.normalize(ours.module.encode_image(pixels), dim=-1)
        words = torch.nn.functional.normalize(ours.module.encode_text(ids), dim=-1)
    torch.testing.assert_close(image, out.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(words, out.text_embeds, atol=1e-5, rtol=1e-4)


def test_a_stage_reports_what_it_takes_and_a_wrong_text_tower_is_one_line(
    architectures: dict[str, Any], tmp_path: Path
) -> None:
    original = made(architectures["openai"], seed=0)
    save_clip(original, tmp_path / "original")
    file = tmp_path / "CLIP_after_GenFT.pth"
    torch.save(diva_script(tuned(original).module.state_dict()), file)
    stage = ImportClip(name="diva", source=architectures["openai"], pretrained=str(file), text_from="original")
    events: list[Any] = []
    (tmp_path / "out").mkdir()
    ctx = Context("diva", tmp_path / "out", tmp_path, {"original": tmp_path / "original"}, events.append)
    checkpoint = stage.run(ctx)
    assert isinstance(checkpoint, ClipCheckpoint)
    assert torch.equal(load_clip(checkpoint).module.visual.proj, tuned(original).module.visual.proj)
    assert any("7 dropped" in str(event) for event in events)
    with pytest.raises(UserError, match=r"its visual.positional_embedding is .*, that of text_from") as caught:
        import_clip(
            architectures["openai"], str(file), ReadOptions(text_from=made(architectures["dfn"], seed=0)), KeyReport()
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="text_from replaces the text tower"):
        ImportClip(name="diva", source="x", pretrained=str(file), text_from="original", part="visual")


def test_a_file_with_another_prefix_or_missing_tensors_is_named_in_one_line(
    architectures: dict[str, Any], tmp_path: Path
) -> None:
    state = made(architectures["openai"], seed=0).module.state_dict()
    for number, wrong in enumerate(
        ({f"other.part.{key}": value for key, value in state.items()}, dict(list(state.items())[:-2]))
    ):
        file = tmp_path / f"{number}.pth"
        torch.save(wrong, file)
        with pytest.raises(UserError) as caught:
            import_clip(architectures["openai"], str(file), ReadOptions(), KeyReport())
        assert str(caught.value).startswith(f"{file}: does not fit ")
        assert "\n" not in str(caught.value)


def test_the_recipe_pairs_every_released_model_with_the_one_it_was_tuned_from() -> None:
    recipe = load_recipe("diva_published", stage_types(load_plugins()), ["paths.released=/files"])
    stages = {stage.name: stage for stage in recipe.stages}
    read = {"DIVA": 0, "GenHancer": 0, "un2CLIP": 0}
    for stage in recipe.stages:
        if not isinstance(stage, MmvpVlm):
            continue
        original, *others = (stages[name] for name in stage.models)
        assert original.text_from is None
        assert others
        for model in others:
            assert model.text_from == original.name
            file = model.pretrained or model.source
            assert file.startswith("/files/")
            read[file.split("/")[2]] += 1
            if model.pretrained:
                assert model.source == original.source
    assert read == {"DIVA": 8, "GenHancer": 6, "un2CLIP": 4}
