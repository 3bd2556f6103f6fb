"""What generators are made of: a UNet with its noise schedule and objective, and the space in which it denoises."""

# B batch, C channels, h side of the denoised sample, S side of the picture, K context tokens, W their width

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vfm_kernels import add_noise, denoising_error, discrete_timesteps, interpolate_noise
from vfm_kernels.diffusion import DiffusionKind


class Denoiser(nn.Module):
    """A UNet that predicts noise or velocity from a noisy sample, its time and its context, and what that costs.

    Args:
        unet: called as diffusers' `UNet2DConditionModel`.
        prediction: what it was trained to predict; its error is measured against that target and no other.
        alphas_cumprod: share of signal at each timestep of the schedule, (T,); for `flow` only T counts.
    """

    alphas_cumprod: Tensor

    def __init__(self, unet: nn.Module, prediction: DiffusionKind, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.unet: Any = unet
        self.prediction = prediction
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, x0: Tensor, noise: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """The mean squared error of each sample, fp32 (B,).

        Args:
            x0: clean samples, (B, C, h, h).
            noise: unit normal, like `x0`.
            times: in [0, 1), (B,); 0 is clean.
            context: what conditions each sample, (B, K, W).
        """
        num_timesteps = len(self.alphas_cumprod)
        if self.prediction == "flow":
            alpha_bar, timesteps = None, times * num_timesteps
            noisy = interpolate_noise(x0, noise, times)
        else:
            timesteps = discrete_timesteps(times, num_timesteps)
            alpha_bar = self.alphas_cumprod[timesteps]
            noisy = add_noise(x0, noise, alpha_bar)
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=context).sample
        return denoising_error(self.prediction, predicted, x0, noise, alpha_bar)


def error_over_times(denoiser: Denoiser, x0: Tensor, noise: Tensor, times: Tensor, context: Tensor) -> Tensor:
    """The error of each sample, mean over its N times, (B,), in one pass of the UNet.

    Args:
        denoiser: called as a `Denoiser`.
        x0: clean samples, (B, C, h, h).
        noise: of each time, (B, N, C, h, h).
        times: (B, N).
        context: (B, K, W); the same at all times, so its gradients are summed.
    """
    num_times = times.shape[1]
    error: Tensor = denoiser(
        x0.repeat_interleave(num_times, dim=0),
        noise.flatten(0, 1),
        times.flatten(),
        context.repeat_interleave(num_times, dim=0),
    )
    return error.view(times.shape).mean(dim=1)


class PixelSpace(nn.Module):
    """Denoises pixels themselves, from [-1, 1] times `scale`.

    The scale is what `scaling_factor` is for a VAE: it brings the data to a spread of about 1, which noise schedules
    are made for. Without it, pictures of a plain ground with little on it drown in noise at nearly every time.
    """

    channels = 3
    downscale = 1

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to float32; black is -scale and white scale."""
        return unit_range(pictures) * self.scale

    def decode(self, samples: Tensor) -> Tensor:
        """The way back, to uint8."""
        return to_uint8(samples / self.scale)


class LatentSpace(PixelSpace):
    """Denoises the latents of a diffusers `AutoencoderKL`: its posterior's mean, shifted and scaled as it says."""

    def __init__(self, vae: nn.Module) -> None:
        config: Any = vae.config
        super().__init__(float(config.scaling_factor))
        self.vae: Any = vae.requires_grad_(False).eval()
        self.channels: int = config.latent_channels
        self.downscale: int = 2 ** (len(config.block_out_channels) - 1)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to latents (B, C, S/8, S/8) where the VAE halves three times."""
        mean: Tensor = self.vae.encode(unit_range(pictures)).latent_dist.mean
        return (mean.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Latents to uint8 pictures."""
        return to_uint8(self.vae.decode(samples / self.scale + self.shift).sample)


def unit_range(pictures: Tensor) -> Tensor:
    """uint8 as float32 in [-1, 1]: black is -1 and white 1."""
    return pictures.float() / 127.5 - 1


def to_uint8(samples: Tensor) -> Tensor:
    """[-1, 1] as uint8."""
    return ((samples.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
