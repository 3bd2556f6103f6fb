"""`diva.tune` with every part as in a recipe: presets, the adapter's first training, and preflight."""

from __future__ import annotations

import json
import math
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diva_families import add_text_encoder, family_clip, family_generator
from diva_toy import make_clip, run, same, tune_config, weights
from test_diva_stages import known, refusal
from test_tune import batch_for, make_task, train
from vfm.flow.recipe.shipped import shipped_files
from vfm.interfaces import LinesPanel, load_panels
from vfm.models import build_clip, load_clip
from vfm.plugin import (
    AdamW,
    AllWeights,
    ClipCheckpoint,
    ConstantSchedule,
    CosineSchedule,
    GeneratorCheckpoint,
    Pool,
    Sgd,
    UserError,
)
from vfm_diva import (
    CosineAnchor,
    Embedding,
    LogitNormal,
    MlpAdapter,
    NoAdapter,
    Patches,
)
from vfm_diva.generator.stages import CropSettings
from vfm_diva.parts.presets import PRESETS
from vfm_diva.tune.stages import DivaTune, Prompt

LINEAR = {"type": "linear"}


def test_the_papers_preset_has_the_settings_of_its_code_and_a_recipe_overrides_them() -> None:
    config = tune_config(preset="diva-paper", steps=4600, lr=1e-4, global_batch_size=640)
    assert config.optimizer == Sgd(momentum=0.9, weight_decay=0.0, grad_clip_norm=1.0)
    assert (config.lr, config.schedule) == (1e-4, CosineSchedule(warmup_steps=23))
    assert (config.num_steps, config.global_batch_size, config.num_timesteps) == (4600, 640, 2)
    assert config.augmentation == CropSettings(crop_scale=(0.9, 1.0), crop_ratio=(0.75, 4 / 3))
    assert (config.prompt, config.adapter.type) == (Prompt(text="a photo of a .", combine="add"), "linear")
    assert (config.timesteps.type, config.trained.type, config.anchor.type) == ("uniform", "all", "none")
    assert config.condition == Patches(count=76)
    assert tune_config(preset="diva-paper", anchor={"type": "cosine"}).anchor.type == "cosine"
    changed = tune_config(preset="diva-paper", optimizer={"momentum": 0.5}, condition={"share": 0.5})
    assert changed.optimizer == Sgd(momentum=0.5, weight_decay=0.0, grad_clip_norm=1.0)
    assert changed.condition == Patches(share=0.5)
    other = tune_config(preset="diva-paper", optimizer={"type": "adamw"})
    assert other.optimizer == AdamW(weight_decay=0.0, grad_clip_norm=1.0)  # the stage's own
    given = {"name": "diva", "clip": "clip", "data": "pool", "generator": "prior", "preset": "diva-paper"}
    assert DivaTune.model_validate(given).num_steps == 4600
    assert DivaTune.model_validate({**given, "samples_seen": 6400}).num_steps == 10


def test_the_papers_departures_from_its_code_can_be_switched_off(pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    clip, sd = family_clip("openai", tmp_path / "clip"), family_generator("sd", tmp_path / "sd")
    add_text_encoder(sd.path, "StableDiffusionPipeline")
    as_code = {"count": 76, "replacement": True, "in_order": False, "draw_per_time": True}
    config = tune_config(
        preset="diva-paper", steps=2, schedule={"warmup_steps": 1}, condition=as_code, adapter={"unit_scale": False}
    )
    run(config, tmp_path / "tuned", clip=clip, prior=sd, pool=pool)
    config = tune_config(preset="diva-paper", steps=2)
    with pytest.raises(UserError, match=r"condition.count must be at most the number of patches of .*, 4"):
        config.preflight(known(clip=clip, prior=sd, pool=pool))


@pytest.mark.parametrize(
    ("backbone", "number", "tokens"),
    [
        ("", 256, 77),
        ("", 576, 77),
        ("-metaclip", 256, 257),
        ("-dfn-224", 256, 257),
        ("-dfn-378", 729, 365),
        ("-siglip-224", 256, 43),
        ("-siglip-384", 729, 73),
    ],
)
def test_the_papers_presets_keep_the_codes_number_of_tokens(backbone: str, number: int, tokens: int) -> None:
    given = {"name": "diva", "clip": "clip", "data": "pool", "generator": "sd", "preset": f"diva-paper{backbone}"}
    side = math.isqrt(number)
    vision = {"image_size": side, "patch_size": 1, "width": 8, "layers": 1, "head_width": 8}
    text = {"context_length": 4, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    model = build_clip({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, seed=0)
    condition = DivaTune.model_validate(given).condition.build(model)
    draws = torch.rand(1, condition.num_draws)
    features = condition(model.module.visual, torch.randn(1, 3, side, side), draws)
    assert features.tokens.shape[1] == tokens


def test_the_recommended_settings_suit_pretrained_generators() -> None:
    given = {"name": "diva", "clip": "clip", "data": "pool", "generator": "sd"}
    config = DivaTune.model_validate(given)
    # The whole tower needs no package beyond the ones of the default install.
    assert (config.preset, config.trained, config.condition.type) == ("recommended", AllWeights(), "embedding")
    assert (config.lr, config.num_steps) == (1e-6, 5000)
    assert isinstance(config.adapter, MlpAdapter)
    assert (config.adapter.first_steps, config.adapter.joint) == (2000, False)
    assert (config.anchor, config.timesteps) == (CosineAnchor(weight=1.0), LogitNormal(mean=0.0, std=1.0))


def test_the_toys_settings_are_those_that_their_published_results_have() -> None:
    config = tune_config(preset="toy-prior")
    assert PRESETS["toy-prior"] == {"steps": 200}
    assert (config.adapter, config.condition) == (NoAdapter(), Embedding())
    assert (config.trained, config.anchor) == (AllWeights(), CosineAnchor(weight=0.3))
    assert (config.num_timesteps, config.timesteps) == (2, LogitNormal(mean=1.5, std=1.2))
    assert config.optimizer == AdamW(weight_decay=0.0, grad_clip_norm=1.0)
    assert DivaTune.model_fields["lr"].default == 1e-4
    for name in ("quickstart", "pairs", "diva_flickr", "diva_tiny", "diva_tiny_varied"):
        text = shipped_files("recipes")[name].read_text(encoding="utf-8")
        assert text.count("kind: diva.tune") == text.count("preset: toy-prior") > 0, name


def test_the_followers_presets_have_their_published_settings() -> None:
    given = {"name": "diva", "clip": "clip", "data": "pool", "generator": "sd"}
    genhancer = DivaTune.model_validate({**given, "preset": "genhancer"})
    assert (genhancer.condition.type, genhancer.adapter.type, genhancer.anchor.type) == ("cls", "mlp", "none")
    assert isinstance(genhancer.adapter, MlpAdapter)
    assert (genhancer.adapter.first_steps, genhancer.adapter.first_lr, genhancer.adapter.joint) == (
        100_000,
        1e-4,
        False,
    )
    assert (genhancer.trained.type, genhancer.trained.rank) == ("lora", 16)
    assert genhancer.schedule == ConstantSchedule(warmup_steps=0)
    assert (genhancer.lr, genhancer.num_steps, genhancer.global_batch_size) == (1e-5, 10_000, 256)
    assert (genhancer.timesteps, genhancer.num_timesteps) == (LogitNormal(mean=0.0, std=1.0), 1)
    un2clip = DivaTune.model_validate({**given, "preset": "un2clip"})
    assert (un2clip.condition.type, un2clip.adapter.type, un2clip.anchor.type) == ("embedding", "none", "none")
    assert (un2clip.trained.type, un2clip.lr, un2clip.global_batch_size) == ("all", 3e-7, 32)
    assert un2clip.prompt == Prompt(text="", combine="replace")


@pytest.mark.parametrize(("preset", "generator"), [("recommended", "sd"), ("genhancer", "sd"), ("un2clip", "unclip")])
def test_the_other_presets_run(preset: str, generator: str, pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    if preset == "genhancer":
        pytest.importorskip("peft")
    clip, prior = family_clip("openai", tmp_path / "clip"), family_generator(generator, tmp_path / "generator")
    if preset == "un2clip":
        add_text_encoder(prior.path, "StableUnCLIPImg2ImgPipeline")
    first = {} if preset == "un2clip" else {"adapter": {"first_steps": 2}}
    config = tune_config(preset=preset, steps=2, precision="fp32", lr=1e-3, **first)
    config.preflight(known(clip=clip, prior=prior, pool=pool))
    tuned = run(config, tmp_path / "tuned", clip=clip, prior=prior, pool=pool)
    before, after = (weights(load_clip(model).module) for model in (clip, tuned))
    assert {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"visual"}


def test_the_papers_preset_runs(pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    clip, sd = family_clip("openai", tmp_path / "clip"), family_generator("sd", tmp_path / "sd")
    add_text_encoder(sd.path, "StableDiffusionPipeline")
    config = tune_config(preset="diva-paper", steps=2, schedule={"warmup_steps": 1}, condition={"share": 0.5})
    config.preflight(known(clip=clip, prior=sd, pool=pool))
    tuned = run(config, tmp_path / "tuned", clip=clip, prior=sd, pool=pool)
    before, after = (weights(load_clip(model).module) for model in (clip, tuned))
    assert {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"visual"}


@pytest.mark.parametrize("joint", [True, False])
def test_the_adapter_is_trained_first_with_clip_frozen(
    joint: bool, clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    adapter = {"type": "mlp", "first_steps": 3, "joint": joint, "lr_scale": 0.1}
    task = make_task(clip, stable_diffusion, "cosine" if joint else "l2_sp", adapter=adapter)
    batch, start = batch_for(task, pool), weights(task)
    with task.adapter_only():
        train(task, batch, tmp_path / "first", steps=3)
    first = weights(task)
    moved = {name for name in start if not torch.equal(start[name], first[name])}
    assert moved
    assert all(name.startswith("conditioner.adapter.") for name in moved)
    train(task, batch, tmp_path / "second", steps=3)
    second = weights(task)
    adapters = [name for name in first if name.startswith("conditioner.adapter.")]
    assert any(not torch.equal(first[name], second[name]) for name in adapters) == joint
    assert not torch.equal(first["visual.proj"], second["visual.proj"])
    scales = {group.lr_scale for group in task.parameter_groups()}
    assert scales == ({1.0, 0.1} if joint else {1.0})


def test_a_run_with_two_trainings_writes_both_curves_and_resumes_after_a_crash(
    clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    config = tune_config(adapter={"type": "linear", "first_steps": 2}, trained={"type": "lora", "rank": 2}, steps=3)
    inputs = {"clip": clip, "prior": stable_diffusion, "pool": pool}
    tuned = run(config, tmp_path / "whole", **inputs)
    for folder, steps in ((tuned.path / "adapter", 2), (tuned.path, 3)):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == steps
    assert any(isinstance(panel, LinesPanel) for panel in load_panels(tuned.path))
    shutil.rmtree(tuned.path)  # as after a crash behind the last step
    again = run(config, tmp_path / "whole", **inputs)
    other = run(config, tmp_path / "other", **inputs)
    assert same(weights(load_clip(again).module), weights(load_clip(other).module))


@pytest.mark.parametrize("update", [{"type": "last_blocks", "blocks": 1}, {"type": "lora", "rank": 2}])
def test_checkpointing_and_bf16_work_with_every_update(
    update: dict[str, Any], clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    config = tune_config(adapter=LINEAR, trained=update, precision="amp_bf16", grad_checkpointing=True, steps=2)
    tuned = run(config, tmp_path, clip=clip, prior=stable_diffusion, pool=pool)
    before, after = (weights(load_clip(model).module) for model in (clip, tuned))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("resblocks.1." in name for name in moved)
    assert all(value.isfinite().all() for value in after.values())


def test_a_model_without_patches_can_use_its_embedding(
    stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    resnet = make_clip(tmp_path / "resnet", layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None)
    task = make_task(resnet, stable_diffusion, "cosine", adapter=LINEAR)
    before = weights(task)
    train(task, batch_for(task, pool), tmp_path / "work", steps=2)
    assert not torch.equal(before["visual.conv1.weight"], weights(task)["visual.conv1.weight"])


def test_parts_that_do_not_fit_are_reported_before_anything_runs(
    clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    sd = stable_diffusion
    resnet = make_clip(tmp_path / "resnet", layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None)
    for part in (
        {"condition": {"type": "cls"}},
        {"trained": {"type": "lora"}},
        {"condition": {"type": "pooled_patches"}},
    ):
        assert "no patch tokens" in refusal(tune_config(adapter=LINEAR, **part), clip=resnet, prior=sd)
    many = tune_config(adapter=LINEAR, trained={"type": "last_blocks", "blocks": 3})
    assert "trained.blocks must be at most the number of blocks of custom, 2; got 3" in refusal(
        many, clip=clip, prior=sd
    )
    assert "no model_index.json found" in refusal(
        tune_config(adapter=LINEAR, prompt={"combine": "add"}), clip=clip, prior=sd
    )
    other_scale = family_generator("sdxl", tmp_path / "sdxl", scale=0.18215)
    message = refusal(tune_config(adapter=LINEAR), clip=clip, prior=other_scale)
    assert (
        "expected scaling_factor 0.13025 of SDXL, like the denoiser; got 0.18215, that of Stable Diffusion" in message
    )
    unknown_scale = family_generator("sdxl", tmp_path / "unknown", scale=0.5)
    assert "got 0.5, that of no known family" in refusal(tune_config(adapter=LINEAR), clip=clip, prior=unknown_scale)
    unclip = family_generator("unclip", tmp_path / "unclip")
    message = refusal(tune_config(), clip=clip, prior=unclip)
    assert "embeddings of width 64, got custom with 32: set adapter.type: linear" in message
    wide = family_clip("openai", tmp_path / "wide")
    assert "set condition.type: embedding" in refusal(tune_config(condition={"type": "cls"}), clip=wide, prior=unclip)
    assert "so the prompt cannot be encoded" in refusal(tune_config(), clip=wide, prior=unclip)


@pytest.mark.parametrize("key", ["latents_mean", "latents_std"])
def test_a_vae_with_statistics_of_its_latents_is_refused(key: str, clip: ClipCheckpoint, tmp_path: Path) -> None:
    generator = family_generator("sdxl", tmp_path)
    file = generator.path / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: [0.1, 0.2, 0.3, 0.4]}))
    assert f"got {key}, which is not supported" in refusal(tune_config(adapter=LINEAR), clip=clip, prior=generator)


def test_latents_that_cannot_be_sampled_are_refused(clip: ClipCheckpoint, prior: GeneratorCheckpoint) -> None:
    message = refusal(tune_config(sample_latents=True), clip=clip, prior=prior)
    assert message.endswith("sample_latents needs a generator with an AutoencoderKL, got pixels: set it to false")
    with pytest.raises(ValueError, match="sample_latents: 'cached' has the mean of the latents; set it to false"):
        tune_config(sample_latents=True, latents="cached")
    assert not tune_config(preset="genhancer", latents="cached").sample_latents


def test_a_dataset_without_a_readable_image_is_rejected(pool: Pool, tmp_path: Path) -> None:
    tune_config().preflight(known(pool=pool))
    shutil.copytree(pool.path, tmp_path / "broken")
    for file in (tmp_path / "broken").glob("**/*.tar"):
        with tarfile.open(file) as tar:
            images = [member for member in tar if not member.name.endswith((".txt", ".json"))]
        content = bytearray(file.read_bytes())
        for image in images:
            content[image.offset_data : image.offset_data + image.size] = bytes(image.size)
        file.write_bytes(bytes(content))
    assert "none of the first 8 images can be read" in refusal(tune_config(), pool=Pool.load(tmp_path / "broken"))
