"""Noise and diffusion times of samples, each drawn from the sample's own seed."""

# B batch, C channels, h side of the denoised sample, N times

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm_diva.parts.parts import LogitNormal, Stratified, Timesteps, Uniform
from vfm_kernels import sample_times

NOISE_STREAM = 0x6E6F6973  # separates the draws of noise and times from the crop, which has the same seed


@dataclass(frozen=True)
class NoiseSampler:
    """Draws the noise and the times of each sample of a batch separately.

    Attributes:
        shape: Shape of the noise, (C, h, h).
        num_times: Number N of times.
        timesteps: Distribution of the times.
    """

    shape: tuple[int, int, int]
    num_times: int
    timesteps: Timesteps

    def __call__(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draw unit-normal noise, (B, N, C, h, h), and times in [0, 1), (B, N), from the seed of each sample."""
        noise = torch.empty(len(seeds), self.num_times, *self.shape)
        times, generator = [], torch.Generator()
        for row, seed in zip(noise, seeds, strict=True):
            torch.randn(row.shape, generator=generator.manual_seed(seed ^ NOISE_STREAM), out=row)
            times.append(self.timesteps.build(self.num_times, generator))
        return noise, torch.stack(times)


def uniform_times(config: Uniform, num_times: int, generator: torch.Generator) -> Tensor:
    """Draw uniform times, (num_times,)."""
    return sample_times("uniform", num_times, generator, shift=config.shift)


def logit_normal_times(config: LogitNormal, num_times: int, generator: torch.Generator) -> Tensor:
    """Draw logit-normal times, (num_times,)."""
    return sample_times("logit_normal", num_times, generator, mean=config.mean, std=config.std, shift=config.shift)


def stratified_times(config: Stratified, num_times: int, generator: torch.Generator) -> Tensor:
    """Draw one uniform time in each of `num_times` equal parts of [0, 1), in random order, (num_times,)."""
    return sample_times("stratified", num_times, generator, shift=config.shift)
