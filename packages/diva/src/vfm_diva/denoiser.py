"""What a generator learns: a network with its noise schedule and its objective."""

# B batch, C channels, h side of the denoised sample, N times

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vfm_diva.networks import predict
from vfm_diva.told import Told
from vfm_kernels import add_noise, denoising_error, discrete_timesteps, interpolate_noise
from vfm_kernels.diffusion import DiffusionKind


class Denoiser(nn.Module):
    """A network that predicts noise or velocity from a noisy sample, its time and what it is told, and what that costs.

    Args:
        network: diffusers' `UNet2DConditionModel`, or a flow transformer that `networks` knows.
        prediction: what it was trained to predict; its error is measured against that target and no other.
        alphas_cumprod: share of signal at each timestep of the schedule, (T,); for `flow` only T counts.
    """

    alphas_cumprod: Tensor

    def __init__(self, network: nn.Module, prediction: DiffusionKind, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.network: Any = network
        self.prediction = prediction
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, x0: Tensor, noise: Tensor, times: Tensor, told: Told) -> Tensor:
        """The mean squared error of each sample, fp32 (B,).

        Args:
            x0: clean samples, (B, C, h, h).
            noise: unit normal, like `x0`.
            times: in [0, 1), (B,); 0 is clean.
            told: what conditions each sample.
        """
        num_timesteps = len(self.alphas_cumprod)
        if self.prediction == "flow":
            alpha_bar, timesteps = None, times * num_timesteps
            noisy = interpolate_noise(x0, noise, times)
        else:
            timesteps = discrete_timesteps(times, num_timesteps)
            alpha_bar = self.alphas_cumprod[timesteps]
            noisy = add_noise(x0, noise, alpha_bar)
        predicted = self.predict(noisy, timesteps, told)
        return denoising_error(self.prediction, predicted, x0, noise, alpha_bar)

    def predict(self, noisy: Tensor, timesteps: Tensor, told: Told) -> Tensor:
        """What the network says of noisy samples (B, C, h, h) at timesteps of its schedule, (B,)."""
        return predict(self.network, noisy, timesteps, told)


def error_over_times(denoiser: Denoiser, x0: Tensor, noise: Tensor, times: Tensor, told: Told) -> Tensor:
    """The error of each sample, mean over its N times, (B,), in one pass of the network.

    Args:
        denoiser: called as a `Denoiser`.
        x0: clean samples, (B, C, h, h).
        noise: of each time, (B, N, C, h, h).
        times: (B, N).
        told: of each sample; the same at all times, so its gradients are summed.
    """
    num_times = times.shape[1]
    error: Tensor = denoiser(
        x0.repeat_interleave(num_times, dim=0), noise.flatten(0, 1), times.flatten(), told.repeated(num_times)
    )
    return error.view(times.shape).mean(dim=1)
