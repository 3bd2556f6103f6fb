"""Cached latents: training from them equals training with the VAE on the cached crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from diva_toy import context, make_prior, prior_config, run, same, tune_config, weights
from test_diva_stages import known, refusal
from test_tune import make_task
from vfm.data import ImageTransform, Sample, SampleDraw, TrainingData, open_dataset
from vfm.models import load_clip
from vfm.plugin import ClipCheckpoint, GeneratorCheckpoint, Pool, SampleCache, UserError
from vfm_diva import DivaLatents, LogitNormal
from vfm_diva.generator.inputs import MakeImageInputs, MakeTuneInputs, TuneInputs
from vfm_diva.generator.latents import check_latents, open_latents
from vfm_diva.generator.noise import NoiseSampler
from vfm_diva.generator.space import LatentSpace, load_latent_space
from vfm_diva.generator.stages import CropSettings
from vfm_diva.parts.presets import PRESETS

LINEAR = {"type": "linear"}
CROPS = {"crop_scale": (0.3, 0.6), "crop_ratio": (0.8, 1.2)}
WHOLE = {"augmentation": {"crop_scale": None}}  # nothing random


def latents_config(**changes: Any) -> DivaLatents:
    settings = {
        "data": "pool",
        "generator": "sd",
        "dtype": "fp32",
        "micro_batch_size": 10,
        "runtime": {"device": "cpu"},
    }
    return DivaLatents(name="latents", **{**settings, **changes})


@pytest.fixture(scope="module")
def cached_latents(
    tmp_path_factory: pytest.TempPathFactory, pool: Pool, stable_diffusion: GeneratorCheckpoint
) -> SampleCache:
    config = latents_config(num_crops=2, samples_per_shard=40, seed=7, augmentation=CROPS)
    config.preflight(known(sd=stable_diffusion, pool=pool))
    return run(config, tmp_path_factory.mktemp("cached_latents"), pool=pool, sd=stable_diffusion)


class OnTheFly:
    """The same crops, drawn from the cache's seed, with images instead of latents."""

    def __init__(self, make: MakeImageInputs, cache: SampleCache, batch_size: int) -> None:
        self.make, self.cache, self.batch_size = make, cache, batch_size

    def __call__(self, sample: Sample, draw: SampleDraw) -> TuneInputs:
        epoch = draw.step * self.batch_size // self.cache.num_samples
        crop = SampleDraw.of(self.cache.seed, epoch % self.cache.num_crops, draw.index)
        noise, times = (drawn[0] for drawn in self.make.sampler([draw.seed]))
        return TuneInputs(**{**vars(self.make(sample, crop)), "noise": noise, "times": times})


def test_a_step_from_cached_latents_equals_the_step_with_the_vae_on_the_cached_crop(
    clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, cached_latents: SampleCache
) -> None:
    task = make_task(clip, stable_diffusion, "cosine", adapter=LINEAR)
    assert (cached_latents.shape, cached_latents.num_crops, cached_latents.num_samples) == ((4, 8, 8), 2, 96)
    plain = ImageTransform(16, "crop")
    stored, cropped = open_latents(cached_latents, pool, task.generator, plain, 32)
    assert (cropped.scale, cropped.ratio) == ((0.3, 0.6), (0.8, 1.2))
    make = MakeImageInputs(cropped, NoiseSampler((4, 8, 8), 2, LogitNormal()), task.clip.preprocess)
    data = [
        TrainingData(open_dataset(pool), each, global_batch_size=32)
        for each in (MakeTuneInputs(replace(make, stored=stored)), OnTheFly(make, cached_latents, 32))
    ]
    losses = []
    for steps in zip(*(each.steps(0, 7) for each in data), strict=True):  # three steps per epoch
        cached, live = (batch.inputs for (batch,) in steps)
        assert cached.target_images is None
        assert torch.equal(cached.images, live.images)
        torch.testing.assert_close(cached.target_latents, task.space(live.target_images), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            losses.append([task(inputs)[0].item() for inputs in (cached, live)])
    first, second = torch.tensor(losses).T
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_training_from_cached_latents_ends_as_the_training_with_the_vae(
    dtype: str, clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, tmp_path: Path
) -> None:
    inputs = {"clip": clip, "prior": stable_diffusion, "pool": pool, "sd": stable_diffusion}
    cache = run(latents_config(dtype=dtype, **WHOLE), tmp_path / "latents", **inputs)
    configs = tune_config(adapter=LINEAR, latents="latents"), tune_config(adapter=LINEAR, **WHOLE)
    configs[0].preflight(known(**inputs, latents=cache))
    made = [
        weights(load_clip(run(config, tmp_path / str(place), **inputs, latents=cache)).module)
        for place, config in enumerate(configs)
    ]
    start = weights(load_clip(clip).module)["visual.proj"]
    tolerance = 1e-5 if dtype == "fp32" else 1e-3
    assert (made[1]["visual.proj"] - start).abs().max() > 2e-3
    torch.testing.assert_close(made[0], made[1], atol=tolerance, rtol=0)


@pytest.mark.slow
def test_a_prior_trains_from_cached_latents(
    clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, tmp_path: Path
) -> None:
    inputs = {"clip": clip, "pool": pool, "sd": stable_diffusion}
    cache = run(latents_config(**WHOLE), tmp_path / "latents", **inputs)
    configs = [prior_config(vae="sd", image_size=16, steps=3, **more) for more in ({"latents": "latents"}, {})]
    configs[0].preflight(known(**inputs, latents=cache))
    made = [run(config, tmp_path / str(place), **inputs, latents=cache) for place, config in enumerate(configs)]
    theirs = [
        diffusers.UNet2DConditionModel.from_pretrained(each.path / "unet", low_cpu_mem_usage=False) for each in made
    ]
    torch.testing.assert_close(weights(theirs[0]), weights(theirs[1]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="latents needs vae"):
        prior_config(latents="latents")


def test_interrupted_caching_resumes_and_ends_as_an_uninterrupted_one(
    pool: Pool, stable_diffusion: GeneratorCheckpoint, cached_latents: SampleCache, tmp_path: Path
) -> None:
    config = latents_config(num_crops=2, samples_per_shard=40, seed=7, augmentation=CROPS)
    ctx = context(config, tmp_path, pool=pool, sd=stable_diffusion)
    ctx.directory.mkdir()
    ctx.work.mkdir()

    def cut(event: Any) -> None:
        if event.type == "progress" and event.data["done"] > 50:
            raise KeyboardInterrupt

    ctx.send = cut
    with pytest.raises(KeyboardInterrupt):
        config.run(ctx)
    again = run(config, tmp_path, pool=pool, sd=stable_diffusion)
    for file in sorted((cached_latents.path / "tensors").iterdir()):
        assert (again.path / "tensors" / file.name).read_bytes() == file.read_bytes()


def test_latents_of_other_data_sizes_or_crops_are_rejected(
    clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, cached_latents: SampleCache, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="'latents' determines the crops"):
        tune_config(latents="latents", augmentation={"crop_scale": (0.5, 1.0)})
    config = tune_config(adapter=LINEAR, latents="latents")
    inputs = {"clip": clip, "prior": stable_diffusion, "latents": cached_latents}
    elsewhere = Pool.create(tmp_path / "elsewhere", num_samples=96, languages=["en"])
    large = refusal(tune_config(adapter=LINEAR, latents="latents", image_size=32), **inputs)
    assert "expected 4 x 16 x 16 for this generator and image_size, got 4 x 8 x 8" in large
    with pytest.raises(UserError, match="latents: expected latents of"):
        check_latents(cached_latents, elsewhere)
    config.preflight(known(**inputs))
    pixels = make_prior(tmp_path / "pixels", clip)
    message = refusal(latents_config(generator="prior"), prior=pixels)
    assert "expected a generator with a VAE, got one that denoises pixels" in message


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_cached_crops_replace_those_of_a_preset(preset: str) -> None:
    assert tune_config(preset=preset, latents="latents").augmentation == CropSettings()
    with pytest.raises(ValueError, match="'latents' determines the crops"):
        tune_config(preset=preset, latents="latents", augmentation={"crop_scale": (0.5, 1.0)})


@pytest.mark.parametrize("change", ["weights", "scale"])
def test_latents_of_another_vae_have_another_fingerprint(
    change: str, pool: Pool, stable_diffusion: GeneratorCheckpoint, cached_latents: SampleCache
) -> None:
    space = load_latent_space(stable_diffusion.path)
    assert cached_latents.producer == space.fingerprint() == load_latent_space(stable_diffusion.path).fingerprint()
    if change == "scale":
        space.scale = 0.13025
    else:
        with torch.no_grad():
            next(space.vae.parameters()).add_(1e-3)
    assert space.fingerprint() != cached_latents.producer


def test_a_tiny_vae_is_supported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    vae.save_pretrained(tmp_path / "vae")
    space = load_latent_space(tmp_path)
    assert isinstance(space, LatentSpace)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        plain = vae.encode(images / 127.5 - 1).latents
    assert plain.shape == (2, space.channels, 16 // space.downscale, 16 // space.downscale)
    torch.testing.assert_close(space(images), plain)
    assert space.decode(plain).shape == images.shape
    assert same(weights(space), weights(load_latent_space(tmp_path)))
