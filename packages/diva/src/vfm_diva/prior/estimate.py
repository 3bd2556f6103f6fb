"""Cost of `diva.prior` before it runs."""

from __future__ import annotations

import torch

from vfm.models import planned_clip
from vfm.plugin import Cost, Preflight
from vfm.train import estimate_training
from vfm_diva.generator.inputs import PriorInputs
from vfm_diva.prior.prior import build_prior
from vfm_diva.prior.prior_task import PriorTask
from vfm_diva.prior.stages import DivaPrior


def diva_prior_cost(config: DivaPrior, ctx: Preflight) -> Cost:
    """Estimate the cost of training a prior.

    All conditions are taken as images, because they cost more than captions. The cost is unknown if the CLIP model or
    the VAE is not known yet.
    """
    clip, vae = planned_clip(ctx, config.clip), ctx.artifact(config.vae) if config.vae else None
    if clip is None or (config.vae and vae is None):
        return Cost(unknown=(f"the model of {config.clip if clip is None else config.vae}",))
    # Tensors on the meta device have shapes but no memory.
    with torch.device("meta"):
        generator = build_prior(config, clip, vae, weights=False)
        task = PriorTask(clip, generator, condition_noise=config.condition.noise)
    if config.grad_checkpointing:
        generator.denoiser.network.enable_gradient_checkpointing()
    side = clip.preprocess.image_size
    size = generator.image_size
    shape = generator.noise_shape

    def inputs(number: int) -> PriorInputs:
        images = torch.zeros(number, 3, side, side, dtype=torch.uint8)
        target = torch.zeros(number, 3, size, size, dtype=torch.uint8)
        chosen = torch.zeros(number, dtype=torch.bool)
        return PriorInputs(
            images=images,
            target_images=None if config.latents else target,
            target_latents=torch.zeros(number, *shape) if config.latents else None,
            noise=torch.zeros(number, 1, *shape),
            times=torch.zeros(number, 1),
            tokens=torch.zeros(number, clip.context_length, dtype=torch.int64),
            is_text=chosen,
            is_empty=chosen,
            condition_noise=torch.zeros(number, clip.embed_dim),
        )

    return estimate_training(task, inputs, config)
