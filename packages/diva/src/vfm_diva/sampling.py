"""Pictures drawn by a generator: what it makes of a condition, for people to see."""

# B batch, K context tokens, W their width, S side of the picture

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from vfm_diva.generator import Generator


@torch.no_grad()
def draw(
    generator: Generator,
    context: Tensor,
    *,
    image_size: int | None = None,
    empty: Tensor | None = None,
    guidance: float = 2.0,
    num_steps: int = 25,
    seed: int = 0,
) -> Tensor:
    """Pictures of contexts, uint8 (B, 3, S, S): DDIM, or Euler for flow. The same seed starts from the same noise.

    Args:
        context: (B, K, W).
        image_size: S; None is the generator's own.
        empty: the context of no condition; with it, `guidance` above 1 follows the condition more than was learned.
        guidance: see `empty`.
        num_steps: passes of the UNet.
        seed: of the noise to start from.

    Source: Song et al. 2020, DDIM (arXiv:2010.02502); Ho and Salimans 2022, classifier-free guidance
    (arXiv:2207.12598).
    """
    unet, scheduler = generator.denoiser.unet, deepcopy(generator.scheduler)
    scheduler.set_timesteps(num_steps)
    shape = generator.noise_shape_at(image_size or generator.image_size)
    noise = torch.randn(len(context), *shape, generator=torch.Generator().manual_seed(seed))
    sample = noise.to(context.device)
    for timestep in scheduler.timesteps:
        times = timestep.to(context.device).expand(len(sample))
        predicted = unet(sample, times, encoder_hidden_states=context).sample
        if empty is not None:
            plain = unet(sample, times, encoder_hidden_states=empty).sample
            predicted = plain + guidance * (predicted - plain)
        sample = scheduler.step(predicted, timestep, sample).prev_sample
    return generator.space.decode(sample)
