"""Pictures drawn by a generator: what it makes of a condition, for people to see."""

# B batch, S side of the picture

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from vfm_diva.generator import Generator
from vfm_diva.told import Told


@torch.no_grad()
def draw(
    generator: Generator,
    told: Told,
    *,
    image_size: int | None = None,
    empty: Told | None = None,
    guidance: float = 2.0,
    num_steps: int = 25,
    seed: int = 0,
) -> Tensor:
    """Pictures of what is told, uint8 (B, 3, S, S): DDIM, or Euler for flow. The same seed starts from the same noise.

    Args:
        told: of each picture.
        image_size: S; None is the generator's own.
        empty: what is told of no condition; with it, `guidance` above 1 follows the condition more than was learned.
        guidance: see `empty`.
        num_steps: passes of the network.
        seed: of the noise to start from.

    Source: Song et al. 2020, DDIM (arXiv:2010.02502); Ho and Salimans 2022, classifier-free guidance
    (arXiv:2207.12598).
    """
    denoiser, scheduler = generator.denoiser, deepcopy(generator.scheduler)
    scheduler.set_timesteps(num_steps)
    shape, device = generator.noise_shape_at(image_size or generator.image_size), told.tokens.device
    noise = torch.randn(len(told), *shape, generator=torch.Generator().manual_seed(seed))
    sample = noise.to(device)
    for timestep in scheduler.timesteps:
        times = timestep.to(device).expand(len(sample))
        predicted = denoiser.predict(sample, times, told)
        if empty is not None:
            plain = denoiser.predict(sample, times, empty)
            predicted = plain + guidance * (predicted - plain)
        sample = scheduler.step(predicted, timestep, sample).prev_sample
    return generator.space.decode(sample)
