"""Costs of `diva.tune` and `diva.prior` before they run, for `vfm plan --estimate`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from vfm.models import planned_clip
from vfm.plugin import Cost, GeneratorCheckpoint, Preflight, Ref
from vfm.train import estimate_training
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.denoiser import Denoiser
from vfm_diva.generator.generator import BETAS, Generator, load_generator
from vfm_diva.generator.inputs import TuneInputs
from vfm_diva.generator.space import LatentSpace
from vfm_diva.parts.loss_parts import ViewLoss
from vfm_diva.prior.prior import build_prior
from vfm_diva.prior.stages import DivaPrior
from vfm_diva.tune.conditioner import needs_prompt
from vfm_diva.tune.stages import DivaTune
from vfm_diva.tune.tune import first_training
from vfm_diva.tune.tune_task import TuneTask

PROMPT_LENGTH = 77  # tokens of CLIP's text towers, which most generators use
# Stable Diffusion 2.1-base, whose configuration is on the hub only.
STABLE_DIFFUSION: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
}


def diva_tune_cost(config: DivaTune, ctx: Preflight) -> Cost:
    """Estimate the cost of a tuning. It is unknown if its CLIP model or its generator is not known yet."""
    clip = planned_clip(ctx, config.clip)
    generator = _generator(config.generator, ctx)
    if clip is None or generator is None:
        return Cost(unknown=(f"the model of {config.clip if clip is None else config.generator}",))
    if config.grad_checkpointing:
        clip.module.set_grad_checkpointing()  # type: ignore[operator]
        generator.denoiser.network.enable_gradient_checkpointing()
    with torch.device("meta"):
        width = generator.inputs.context_width
        prompt = None
        if needs_prompt(clip, generator, config):
            prompt = Conditioning(torch.zeros(1, PROMPT_LENGTH, width))
        task = TuneTask(clip, generator, config, prompt=prompt)
    side, shape = clip.preprocess.image_size, generator.noise_shape_at(task.image_size)
    draws = task.condition.num_draws * (config.num_timesteps if task.condition.draws_per_time else 1)

    def inputs(number: int) -> TuneInputs:
        size = task.image_size
        images = torch.zeros(number, 3, side, side, dtype=torch.uint8)
        target = torch.zeros(number, 3, size, size, dtype=torch.uint8)
        return TuneInputs(
            images=images,
            target_images=None if config.latents else target,
            target_latents=torch.zeros(number, *shape) if config.latents else None,
            noise=torch.zeros(number, config.num_timesteps, *shape),
            times=torch.zeros(number, config.num_timesteps),
            patch_draws=torch.zeros(number, draws) if draws else None,
            views=images if isinstance(config.loss, ViewLoss) else None,
        )

    plan = first_training(config)
    if plan is None:
        return estimate_training(task, inputs, config)
    first = deepcopy(task)  # an estimate uses its task up
    with first.adapter_only():
        before = estimate_training(first, inputs, plan)
    after = estimate_training(task, inputs, config)
    # The two runs follow each other: memory is the larger one, operations and disk add up.
    largest = max(before, after, key=lambda cost: cost.memory.total if cost.memory else 0)
    disk = (before.disk or 0) + (after.disk or 0)  # the first run's checkpoints remain next to the second's
    return replace(after, memory=largest.memory, flops=(before.flops or 0) + (after.flops or 0), disk=disk)


def _generator(ref: Ref[GeneratorCheckpoint], ctx: Preflight) -> Generator | None:
    """Build a generator without weights.

    It is an artifact's, Stable Diffusion 2.1-base by name, or a prior's in pixels.
    """
    checkpoint = ctx.artifact(ref)
    if checkpoint:
        return load_generator(checkpoint, weights=False)
    stage = ctx.stage(ref)
    if "stable-diffusion-2-1-base" in str(getattr(stage, "source", "")):
        return stable_diffusion()
    if not isinstance(stage, DivaPrior) or stage.vae:
        return None
    clip = planned_clip(ctx, stage.clip)
    if not clip:
        return None
    with torch.device("meta"):
        return build_prior(stage, clip, None, weights=False)


def stable_diffusion() -> Generator:
    """Build Stable Diffusion 2.1-base without weights."""
    scheduler = DDIMScheduler(**BETAS)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION["unet"]).eval()
        space = LatentSpace(AutoencoderKL(**STABLE_DIFFUSION["vae"]))
    denoiser = Denoiser(unet, "epsilon", scheduler.alphas_cumprod).to("meta")
    return Generator(denoiser, space, scheduler, None, STABLE_DIFFUSION["unet"]["sample_size"])
