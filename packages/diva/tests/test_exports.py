"""A tuned model is an ordinary CLIP model: open_clip, OpenAI's loader and transformers read it, with equal features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.openai import build_model_from_openai_state_dict
from PIL import Image
from safetensors.torch import load_file

from diva_families import family_clip, family_generator
from diva_toy import run, tune_config
from vfm.models import find_format, load_clip
from vfm.plugin import ClipCheckpoint, Pool

IMAGES = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 24, 3), np.uint8)) for n in range(3)]


@pytest.fixture(scope="module", params=["openai_sized", "siglip"])
def tuned(request: pytest.FixtureRequest, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> ClipCheckpoint:
    folder = tmp_path_factory.mktemp(request.param)
    parts = {"clip": family_clip(request.param, folder / "clip"), "prior": family_generator("sd", folder / "sd")}
    config = tune_config(adapter={"type": "linear"}, trained={"type": "lora", "rank": 2}, steps=2, lr=1e-2)
    made: ClipCheckpoint = run(config, folder / "tuned", pool=pool, **parts)
    before, after = (load_clip(model).encode_images(IMAGES) for model in (parts["clip"], made))
    assert not torch.allclose(before, after, atol=1e-4)
    return made


def test_transformers_computes_the_same_features(tuned: ClipCheckpoint, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = load_clip(tuned)
    find_format("hf", model, "tuned").write(model, tmp_path)
    is_siglip = "logit_bias" in dict(model.module.named_parameters())
    theirs = (transformers.SiglipModel if is_siglip else transformers.CLIPModel).from_pretrained(tmp_path).eval()
    inputs = model.preprocess.inputs(IMAGES, torch.device("cpu"))
    with torch.no_grad():
        vision = theirs.vision_model(inputs).pooler_output
        embeds = vision if is_siglip else theirs.visual_projection(vision)
        torch.testing.assert_close(embeds, model.module.encode_image(inputs), atol=1e-6, rtol=1e-4)
    if not is_siglip:  # which LLaVA uses
        encoder = transformers.CLIPVisionModel.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(encoder(inputs).pooler_output, vision)
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "lora" in key or "unet" in key]


def test_open_clip_computes_the_same_features(tuned: ClipCheckpoint) -> None:
    model = load_clip(tuned)
    if "timm_model_name" in model.config["vision_cfg"]:
        pytest.skip("only vfm registers this timm name")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tuned.path}")
    with torch.no_grad():
        embeds = theirs.eval().encode_image(torch.stack([preprocess(image) for image in IMAGES]), normalize=True)
    torch.testing.assert_close(embeds, model.encode_images(IMAGES), atol=1e-6, rtol=1e-4)


def test_the_weights_have_openais_names(tuned: ClipCheckpoint, tmp_path: Path) -> None:
    model = load_clip(tuned)
    if "timm_model_name" in model.config["vision_cfg"]:
        pytest.skip("OpenAI has no model of this architecture")
    find_format("safetensors", model, "tuned").write(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    theirs = build_model_from_openai_state_dict(dict(state)).float()
    theirs.load_state_dict(state)  # again, since it rounded them to half precision
    inputs = model.preprocess.inputs(IMAGES, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode_image(inputs), model.module.encode_image(inputs))
