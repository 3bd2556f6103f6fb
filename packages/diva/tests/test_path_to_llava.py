"""The way from folders of images to LLaVA, `diva_openai_l14`, on look-alikes of everything that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diva_families import add_text_encoder, family_generator
from vfm.cli import app
from vfm.interfaces import load_panels
from vfm.models import find_format, load_clip

transformers = pytest.importorskip("transformers")

# 81 patches, since `diva-paper` keeps 76 of OpenAI's 256.
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": 18, "patch_size": 2, "projection_dim": 24}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def draw(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(file)


def make_folders(root: Path) -> dict[str, Path]:
    """Write images alone, MMVP-VLM, class folders, images with captions, OpenAI's CLIP, Stable Diffusion and LLaVA."""
    for number in range(8):
        draw(root / "images" / f"{number}.png", number)
        draw(root / "imagenet" / ("cat", "dog")[number % 2] / f"{number}.png", number)
        draw(root / "coco" / f"{number}.png", number)
        (root / "coco" / f"{number}.txt").write_text(f"a photo of number {number}")
    rows = ["Question ID,Type,Statement"]
    for number in range(1, 9):
        kind = ("Color and Appearance", "Texts")[(number - 1) // 2 % 2]
        rows.append(f"{number},{kind},the number {number}")
        draw(root / "mmvp" / "MLLM_VLM Images" / kind / f"{number}.jpg", number)
    (root / "mmvp" / "Questions.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    text = {**TEXT, "max_position_embeddings": 16, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406}
    config = transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)
    transformers.CLIPModel(config).save_pretrained(root / "openai")
    sd = family_generator("sd", root / "sd").path
    add_text_encoder(sd, "StableDiffusionPipeline")
    llava = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=60, max_position_embeddings=128),
        image_token_index=59,
        image_seq_length=81,
    )
    transformers.LlavaForConditionalGeneration(llava).save_pretrained(root / "llava")
    names = ("images", "imagenet", "coco", "mmvp", "openai", "llava")
    return {name: root / name for name in names} | {"sd": sd}


def vfm(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], prog_name="vfm")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.stderr
    return done.stdout


def settings(at: dict[str, Path], **others: Any) -> list[str]:
    """Write the look-alikes' paths and small sizes as words of a command line."""
    values: dict[str, Any] = {"mmvp_vlm.path": at["mmvp"], "imagenet.path": at["imagenet"], "coco.path": at["coco"]}
    values |= {"sd.source": at["sd"], "clip.source": at["openai"], "clip.pretrained": "null", "runtime": "{threads: 1}"}
    values |= {"diva.steps": 3, "diva.global_batch_size": 4, "diva.micro_batch_size": 2, "diva.precision": "fp32"}
    values |= {"diva.lr": 0.1, "diva.schedule.warmup_steps": 1}
    return [word for key, value in (values | others).items() for word in ("--set", f"{key}={value}")]


@pytest.mark.slow
def test_images_alone_become_a_llava_with_a_tuned_tower(tmp_path: Path) -> None:
    at = make_folders(tmp_path)
    store = tmp_path / "store"
    chosen = settings(at, **{"pool.path": at["images"], "llava.base": at["llava"], "llava.format": "llava"})
    vfm("run", "diva_openai_l14", *chosen, "--store", store, "--quiet")
    artifacts = store / "runs" / "diva_openai_l14" / "artifacts"
    before, after = (load_clip(artifacts / name) for name in ("clip", "diva"))
    assert not torch.equal(before.module.visual.conv1.weight, after.module.visual.conv1.weight)
    assert torch.equal(before.module.token_embedding.weight, after.module.token_embedding.weight)
    for name in ("mmvp", "zero_shot", "retrieval"):
        assert load_panels(artifacts / name)
    llava = transformers.LlavaForConditionalGeneration.from_pretrained(artifacts / "llava").eval()
    find_format("hf", after, "diva").write(after, tmp_path / "hf")
    tower = transformers.CLIPVisionModel.from_pretrained(tmp_path / "hf").eval()
    pixels, ids = torch.randn(1, 3, 18, 18), torch.tensor([[1, *[59] * 81, 5]])
    with torch.no_grad():
        hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]
        theirs = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        answer = llava(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(theirs, hidden)
    old = transformers.LlavaForConditionalGeneration.from_pretrained(at["llava"]).eval()
    with torch.no_grad():
        assert not torch.allclose(answer, old(input_ids=ids, pixel_values=pixels).logits)
    output = vfm("export", artifacts / "diva", "--format", "llava", "--base", at["llava"], "--out", tmp_path / "again")
    assert "train LLaVA again" in output


@pytest.mark.slow
def test_realignment_changes_the_text_tower_alone(tmp_path: Path) -> None:
    pytest.importorskip("vfm_clip")  # the recipe trains a text tower
    at = make_folders(tmp_path)
    small: dict[str, Any] = {"pool.path": at["coco"]}
    for name in ("realigned", "realigned_clip"):
        small |= {f"{name}.steps": 3, f"{name}.global_batch_size": 4, f"{name}.micro_batch_size": 2, f"{name}.lr": 0.1}
        small |= {f"{name}.schedule.warmup_steps": 1}
    store = tmp_path / "store"
    vfm("run", "diva_realigned", *settings(at, **small), "--store", store, "--quiet")
    artifacts = store / "runs" / "diva_realigned" / "artifacts"
    weights = {}
    for name in ("clip", "diva", "realigned", "realigned_clip"):
        module = load_clip(artifacts / name).module
        weights[name] = module.visual.conv1.weight, module.token_embedding.weight
    for name, before in (("realigned", "diva"), ("realigned_clip", "clip")):
        assert torch.equal(weights[name][0], weights[before][0])
        assert not torch.equal(weights[name][1], weights[before][1])
    for name in ("mmvp", "zero_shot", "retrieval"):
        assert load_panels(artifacts / name)
