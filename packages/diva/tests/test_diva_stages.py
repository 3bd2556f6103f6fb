"""The stages as a recipe runs them: their artifacts, and their checks before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diva_toy import CLIP, make_clip, make_prior, prior_config, run, same, tune_config, weights
from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import ImagesPanel, TablePanel, load_panels
from vfm.models import build_clip, load_clip, save_clip
from vfm.plugin import (
    Artifact,
    ClipCheckpoint,
    GeneratorCheckpoint,
    Pool,
    Preflight,
    Stage,
    UserError,
)
from vfm_diva import DivaPrior, DivaTune
from vfm_diva.generator.condition_map import ConditionMap
from vfm_diva.generator.generator import load_generator

SLOW = pytest.mark.slow


@pytest.mark.parametrize("condition", ["text", pytest.param("image", marks=SLOW), pytest.param("both", marks=SLOW)])
def test_a_prior_and_the_tuning_by_its_feedback_run_as_stages(
    condition: str, clip: ClipCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    config = prior_config(condition={"source": condition}, samples_seen=50, steps=None)
    prior: GeneratorCheckpoint = run(config, tmp_path / "prior", clip=clip, pool=pool)
    gap = ConditionMap.load(prior.path / "condition").gap
    assert (gap.abs().max() > 0) == (condition != "image")
    tuned: ClipCheckpoint = run(tune_config(), tmp_path / "tuned", clip=clip, pool=pool, prior=prior)
    before, after = weights(load_clip(clip).module), weights(load_clip(Artifact.load(tuned.path)).module)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.startswith("visual.")
    }
    assert not list(tuned.path.rglob("*unet*"))
    for artifact, columns in ((prior, 2), (tuned, 3)):
        panels = load_panels(artifact.path)
        (table,) = [panel for panel in panels if isinstance(panel, TablePanel)]
        assert all(isinstance(cell, float) and cell > 0 for row in table.rows for cell in row[1:4])
        (sheet,) = [panel for panel in panels if isinstance(panel, ImagesPanel)]
        with Image.open(artifact.path / sheet.pictures[0].file) as image:
            assert image.size == (96 * columns + 4 * (columns - 1), 96)


def test_the_seed_determines_the_prior(clip: ClipCheckpoint, pool: Pool, tmp_path: Path) -> None:
    made = [
        weights(load_generator(run(prior_config(seed=seed), tmp_path / str(i), clip=clip, pool=pool)).denoiser)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_a_prior_in_latents_contains_its_vae(
    clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, tmp_path: Path
) -> None:
    config = prior_config(vae="sd", image_size=16, steps=2)
    prior: GeneratorCheckpoint = run(config, tmp_path / "prior", clip=clip, pool=pool, sd=stable_diffusion)
    generator = load_generator(prior)
    assert (prior.sample_size, generator.image_size, generator.noise_shape) == (8, 16, (4, 8, 8))
    assert same(weights(generator.space), weights(load_generator(stable_diffusion).space))
    run(tune_config(steps=2), tmp_path / "tuned", clip=clip, pool=pool, prior=prior)


def test_bf16_and_checkpointing_train_in_latents_and_pixels(
    clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, tmp_path: Path
) -> None:
    how = {"precision": "amp_bf16", "grad_checkpointing": True, "steps": 2}
    prior = run(prior_config(**how), tmp_path / "prior", clip=clip, pool=pool)
    for name, generator, changes in (("own", prior, {}), ("sd", stable_diffusion, {"adapter": {"type": "linear"}})):
        tuned = run(tune_config(**how, **changes), tmp_path / name, clip=clip, pool=pool, prior=generator)
        before, after = (load_clip(model).module.state_dict()["visual.proj"] for model in (clip, tuned))
        assert after.isfinite().all()
        assert not torch.equal(before, after)


def known(**artifacts: Artifact) -> Preflight:
    return Preflight({}, {name: artifact.path for name, artifact in artifacts.items()})


def refusal(stage: Stage, **artifacts: Artifact) -> str:
    with pytest.raises(UserError) as caught:
        stage.preflight(known(**artifacts))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_inputs_that_do_not_fit_are_reported_before_anything_runs(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    tune_config().preflight(known())
    tune_config().preflight(known(clip=clip, prior=prior))
    prior_config().preflight(known(clip=clip, pool=pool))
    assert "set adapter.type: linear" in refusal(tune_config(), clip=clip, prior=stable_diffusion)
    resnet = make_clip(tmp_path / "resnet", layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None)
    patches = tune_config(condition={"type": "patches"}, adapter={"type": "linear"})
    assert "no patch tokens" in refusal(patches, clip=resnet, prior=stable_diffusion)
    assert "pool has no captions in 'de'; known: en" in refusal(prior_config(language="de"), pool=pool)
    in_latents = prior_config(vae="sd", image_size=18)
    assert "image_size must be a multiple of 4 for this generator, got 18" in refusal(
        in_latents, clip=clip, sd=stable_diffusion
    )
    assert "no VAE found" in refusal(prior_config(vae="sd"), clip=clip, sd=prior)


def without_weights(artifact: Artifact, folder: Path) -> Artifact:
    """Return a copy of a checkpoint with its configurations only."""
    shutil.copytree(artifact.path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return Artifact.load(folder)


def test_no_weights_are_read_before_anything_runs(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, stable_diffusion: GeneratorCheckpoint, tmp_path: Path
) -> None:
    light_clip, light_prior, light_sd = (
        without_weights(artifact, tmp_path / str(number))
        for number, artifact in enumerate((clip, prior, stable_diffusion))
    )
    tune_config().preflight(known(clip=light_clip, prior=light_prior))
    patches = tune_config(condition={"type": "patches"}, adapter={"type": "linear"})
    patches.preflight(known(clip=light_clip, prior=light_sd))
    prior_config(vae="sd", image_size=16).preflight(known(clip=light_clip, sd=light_sd))
    assert "image_size must be a multiple of 2 for this generator, got 17" in refusal(
        tune_config(image_size=17), clip=clip, prior=light_prior
    )


def test_a_prior_of_another_model_of_the_same_width_is_rejected_in_the_run(
    clip: ClipCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    wide = save_clip(build_clip({**CLIP, "embed_dim": 48}), tmp_path / "wide")
    of_wide = make_prior(tmp_path / "of_wide", wide)
    assert "expects embeddings of width 48, got custom with 32" in refusal(tune_config(), clip=clip, prior=of_wide)
    prior = make_prior(tmp_path / "prior", make_clip(tmp_path / "other", seed=1))
    tune_config().preflight(known(clip=clip, prior=prior))
    with pytest.raises(UserError, match="trained on another CLIP model than custom: expected cosine 1"):
        run(tune_config(), tmp_path / "tuned", clip=clip, pool=pool, prior=prior)


def edited(prior: GeneratorCheckpoint, part: str, **changes: Any) -> None:
    file = prior.path / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_unsupported_generators_are_rejected(clip: ClipCheckpoint, tmp_path: Path) -> None:
    second = make_prior(tmp_path / "second", clip)
    edited(second, "unet", class_embed_type="identity")
    assert "needs a condition that diva does not support (class_embed_type identity)" in refusal(
        tune_config(), clip=clip, prior=second
    )
    inpainting = make_prior(tmp_path / "inpainting", clip)
    (inpainting.path / "vae").mkdir()
    edited_vae = inpainting.path / "vae" / "config.json"
    edited_vae.write_text(json.dumps({"_class_name": "AsymmetricAutoencoderKL"}))
    assert "vae/config.json: expected a VAE of class AutoencoderKL, AutoencoderTiny, VQModel; got Asymm" in refusal(
        tune_config(), clip=clip, prior=inpainting
    )
    nine = make_prior(tmp_path / "nine", clip)
    edited(nine, "unet", in_channels=9)
    assert "unet/config.json: the denoiser expects 9 channels, pixels have 3" in refusal(
        tune_config(), clip=clip, prior=nine
    )
    other = make_prior(tmp_path / "other", clip)
    edited(other, "unet", _class_name="HunyuanDiT2DModel")
    assert "unet/config.json: expected a denoiser of class " in refusal(tune_config(), clip=clip, prior=other)
    edited(other, "unet", _class_name="PixArtTransformer2DModel")
    assert "unet/config.json: expected the configuration of PixArtTransformer2DModel" in refusal(
        tune_config(), clip=clip, prior=other
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoiser": {"block_out_channels": (8, 12)}}, "must be multiples of 8, got 12"),
        ({"denoiser": {"attention_levels": 4}}, "attention_levels must be at most the number of levels, 3; got 4"),
        ({"image_size": 9}, "image_size must be a multiple of 2 for this denoiser, got 9"),
        ({"timesteps": {"type": "stratified"}}, "each image has one time here; use uniform"),
    ],
)
def test_priors_that_cannot_be_built_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prior_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor": {"type": "relational"}}, "prompts"),
        ({"anchor": {"type": "l2_sp"}, "trained": {"type": "lora"}}, "which lora does not train"),
        ({"adapter": {"type": "mlp", "joint": False}}, "leaves the adapter random; set first_steps"),
        ({"augmentation": {"crop_scale": (-1, 5)}}, "crop_scale"),
        ({"augmentation": {"crop_scale": (1.0, 0.5)}}, "crop_scale"),
        (
            {"augmentation": {"crop_ratio": (1.2, 0.8)}},
            r"crop_ratio: expected the smaller ratio first, got \[1.2, 0.8\]",
        ),
        ({"timesteps": {"type": "stratified"}, "num_timesteps": 1}, "each image has one time here"),
        ({"control": "shuffled", "micro_batch_size": 1}, "at least 2 images per forward pass, got 1"),
        (
            {"control": "shuffled", "global_batch_size": 4, "runtime": {"processes": 4}},
            "at least 2 images per forward pass, got 1",
        ),
    ],
)
def test_contradictory_settings_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune_config(**changes)


def test_recipes_can_use_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "stages:\n"
        "  - {kind: models.clip, name: clip, source: ViT-B-32, pretrained: openai}\n"
        "  - {kind: shapes.pool, name: pool}\n"
        "  - {kind: diva.prior, name: prior, clip: clip, data: pool, steps: 10}\n"
        "  - {kind: diva.tune, name: diva, clip: clip, generator: prior, data: pool, steps: 10}\n"
    )
    from vfm.interfaces import load_plugins, stage_types

    recipe = load_recipe(str(tmp_path / "recipe.yaml"), stage_types(load_plugins()))
    assert [type(stage) for stage in recipe.stages[2:]] == [DivaPrior, DivaTune]
