"""Kept latents: what training from them sees is what the VAE would have said of the crops that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diva_toy import context, make_prior, prior_plan, run, same, tune_plan, weights
from test_stages import known, refusal
from test_tune import make_task
from vfm import Runtime
from vfm.artifacts import ClipCheckpoint, GeneratorCheckpoint, Pool, SampleCache
from vfm.config import UserError
from vfm.data.loader import SampleSeed, TrainingData, sample_seed
from vfm.data.sample import Sample
from vfm.data.source import open_dataset
from vfm.data.transforms import ImageTransform
from vfm.models.clip import load_clip
from vfm_diva import DivaLatents
from vfm_diva.latents import check_latents, open_latents
from vfm_diva.samples import MakeNoisy, MakeViews
from vfm_diva.space import LatentSpace, load_latents

LINEAR = {"type": "linear"}


def latents_plan(**changes: Any) -> DivaLatents:
    settings = {"name": "latents", "data": "pool", "generator": "sd", "dtype": "fp32", "micro_batch_size": 10}
    return DivaLatents(runtime=Runtime(device="cpu"), **{**settings, **changes})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, pool: Pool, stable_diffusion: GeneratorCheckpoint) -> SampleCache:
    plan = latents_plan(num_crops=2, samples_per_shard=40, seed=7, crop_scale=(0.3, 0.6), crop_ratio=(0.8, 1.2))
    plan.preflight(known(sd=stable_diffusion, pool=pool))
    return run(plan, tmp_path_factory.mktemp("kept"), pool=pool, sd=stable_diffusion)


class OnTheFly:
    """The same crops, drawn from the cache's seed, but with the pictures in place of the latents."""

    def __init__(self, views: MakeViews, cache: SampleCache, batch_size: int) -> None:
        self.views, self.cache, self.batch_size = views, cache, batch_size

    def __call__(self, sample: Sample, seed: SampleSeed) -> dict[str, Tensor]:
        epoch = seed.step * self.batch_size // self.cache.num_samples
        crop_seed = sample_seed(self.cache.seed, epoch % self.cache.num_crops, seed.index)
        return {**self.views(sample, crop_seed), **self.views.noisy.noise(seed)}


def test_a_step_from_kept_latents_is_the_step_with_the_vae_on_the_kept_crop(
    clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, kept: SampleCache
) -> None:
    task = make_task(clip, stable_diffusion, "cosine", adapter=LINEAR)
    assert (kept.shape, kept.num_crops, kept.num_samples) == ((4, 8, 8), 2, 96)
    plain = ImageTransform(16, "crop")
    stored, cropped = open_latents(kept, pool, task.generator, plain, 32)
    assert (cropped.scale, cropped.ratio) == ((0.3, 0.6), (0.8, 1.2))
    noisy = MakeNoisy(cropped, (4, 8, 8), 2)
    views = MakeViews(noisy, task.clip.preprocess)
    data = [
        TrainingData(open_dataset(pool), make, global_batch_size=32)
        for make in (MakeViews(noisy, task.clip.preprocess, stored), OnTheFly(views, kept, 32))
    ]
    losses = []
    for steps in zip(*(each.steps(0, 7) for each in data), strict=True):  # three steps an epoch: both crops, and again
        (cached,), (live,) = steps
        assert "pictures" not in cached
        assert torch.equal(cached["images"], live["images"])
        torch.testing.assert_close(cached["latents"], task.space(live["pictures"]), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            losses.append([task(batch)[0].item() for batch in (cached, live)])
    first, second = torch.tensor(losses).T
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_run_from_kept_latents_ends_as_the_run_with_the_vae(
    dtype: str, clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, tmp_path: Path
) -> None:
    whole = {"crop_scale": None}  # nothing random, so both see the same pictures
    inputs = {"clip": clip, "prior": stable_diffusion, "pool": pool, "sd": stable_diffusion}
    cache = run(latents_plan(dtype=dtype, **whole), tmp_path / "latents", **inputs)
    plans = tune_plan(adapter=LINEAR, latents="latents"), tune_plan(adapter=LINEAR, **whole)
    plans[0].preflight(known(**inputs, latents=cache))
    made = [
        weights(load_clip(run(plan, tmp_path / str(place), **inputs, latents=cache)).module)
        for place, plan in enumerate(plans)
    ]
    start = weights(load_clip(clip).module)["visual.proj"]
    tolerance = 1e-5 if dtype == "fp32" else 1e-3
    assert (made[1]["visual.proj"] - start).abs().max() > 2e-3
    torch.testing.assert_close(made[0], made[1], atol=tolerance, rtol=0)


def test_a_prior_trains_from_kept_latents(
    clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, tmp_path: Path
) -> None:
    inputs = {"clip": clip, "pool": pool, "sd": stable_diffusion}
    cache = run(latents_plan(crop_scale=None), tmp_path / "latents", **inputs)
    plans = [prior_plan(vae="sd", image_size=16, steps=3, **more) for more in ({"latents": "latents"}, {})]
    plans[0].preflight(known(**inputs, latents=cache))
    made = [run(plan, tmp_path / str(place), **inputs, latents=cache) for place, plan in enumerate(plans)]
    theirs = [
        diffusers.UNet2DConditionModel.from_pretrained(each.path / "unet", low_cpu_mem_usage=False) for each in made
    ]
    torch.testing.assert_close(weights(theirs[0]), weights(theirs[1]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="give vae as well"):
        prior_plan(latents="latents")


def test_a_cut_making_goes_on_and_ends_as_the_unbroken_one(
    pool: Pool, stable_diffusion: GeneratorCheckpoint, kept: SampleCache, tmp_path: Path
) -> None:
    plan = latents_plan(num_crops=2, samples_per_shard=40, seed=7, crop_scale=(0.3, 0.6), crop_ratio=(0.8, 1.2))
    ctx = context(plan, tmp_path, pool=pool, sd=stable_diffusion)
    ctx.directory.mkdir()
    ctx.work.mkdir()

    def cut(event: Any) -> None:
        if event.type == "progress" and event.data["done"] > 50:
            raise KeyboardInterrupt

    ctx.send = cut
    with pytest.raises(KeyboardInterrupt):
        plan.run(ctx)
    again = run(plan, tmp_path, pool=pool, sd=stable_diffusion)
    for file in sorted((kept.path / "tensors").iterdir()):
        assert (again.path / "tensors" / file.name).read_bytes() == file.read_bytes()


def test_latents_that_do_not_belong_here_are_refused(
    clip: ClipCheckpoint, pool: Pool, stable_diffusion: GeneratorCheckpoint, kept: SampleCache, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="crops are fixed in 'latents'"):
        tune_plan(latents="latents", crop_scale=(0.5, 1.0))
    plan = tune_plan(adapter=LINEAR, latents="latents")
    inputs = {"clip": clip, "prior": stable_diffusion, "latents": kept}
    elsewhere = Pool.create(tmp_path / "elsewhere", num_samples=96, languages=["en"])
    large = refusal(tune_plan(adapter=LINEAR, latents="latents", image_size=32), **inputs)
    assert "the latents are 4 x 8 x 8, the generator takes 4 x 16 x 16" in large
    with pytest.raises(UserError, match="it must be the same"):
        check_latents(kept, elsewhere)
    plan.preflight(known(**inputs))
    pixels = make_prior(tmp_path / "pixels", clip)
    assert "denoises pixels: there are no latents to keep" in refusal(latents_plan(generator="prior"), prior=pixels)


@pytest.mark.parametrize("change", ["weights", "scale"])
def test_the_latents_of_another_vae_are_refused(
    change: str, pool: Pool, stable_diffusion: GeneratorCheckpoint, kept: SampleCache
) -> None:
    space = load_latents(stable_diffusion.path)
    assert kept.producer == space.key() == load_latents(stable_diffusion.path).key()
    if change == "scale":
        space.scale = 0.13025
    else:
        with torch.no_grad():
            next(space.vae.parameters()).add_(1e-3)
    assert space.key() != kept.producer


def test_a_tiny_vae_is_a_space_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    vae.save_pretrained(tmp_path / "vae")
    space = load_latents(tmp_path)
    assert isinstance(space, LatentSpace)
    pictures = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        plain = vae.encode(pictures / 127.5 - 1).latents
    assert plain.shape == (2, space.channels, 16 // space.downscale, 16 // space.downscale)
    torch.testing.assert_close(space(pictures), plain)
    assert space.decode(plain).shape == pictures.shape
    assert same(weights(space), weights(load_latents(tmp_path)))
