"""A denoising network with its noise schedule and its objective."""

# B batch, C channels, h side of the denoised sample, N times

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.networks import predict
from vfm_kernels import (
    DiffusionKind,
    add_noise,
    denoising_error,
    diffusion_target,
    discrete_timesteps,
    interpolate_noise,
)


class Denoiser(nn.Module):
    """Network that predicts noise or velocity from a noisy sample, its time and a conditioning.

    It also computes the error of the prediction.

    Args:
        network: Network of a class in `vfm_diva.generator.networks.NETWORKS`.
        prediction: Target that the network was trained with. Its error is measured against the same target.
        alphas_cumprod: Share of signal at each timestep of the schedule, (T,). `flow` uses only T.
    """

    alphas_cumprod: Tensor

    def __init__(self, network: nn.Module, prediction: DiffusionKind, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.network: Any = network
        self.prediction = prediction
        # Not persistent: the scheduler's configuration has the schedule.
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, x0: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """Compute the mean squared error of each sample, fp32 (B,).

        Args:
            x0: Clean samples, (B, C, h, h).
            noise: unit-normal noise of the same shape.
            times: Diffusion times in [0, 1), (B,), where 0 is clean.
            conditioning: Conditioning of each sample.
        """
        predicted, alpha_bar = self._predict_noisy(x0, noise, times, conditioning)
        return denoising_error(self.prediction, predicted, x0, noise, alpha_bar)

    def predict_target(
        self, x0: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Add noise to samples, predict from them, and compute the target of the prediction.

        Args:
            x0: Clean samples, (B, C, h, h).
            noise: Like `x0`.
            times: Times from 0 (clean) to 1, (B,).
            conditioning: Condition of each sample.

        Returns:
            Prediction and target, both shaped like `x0`.
        """
        predicted, alpha_bar = self._predict_noisy(x0, noise, times, conditioning)
        return predicted, diffusion_target(self.prediction, x0, noise, alpha_bar)

    def _predict_noisy(
        self, x0: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor | None]:
        """Predict from samples with noise. Also return the share of signal at the times, (B,), except for `flow`."""
        num_timesteps = len(self.alphas_cumprod)
        if self.prediction == "flow":
            # Flow networks take continuous times, in the unit of their schedule.
            alpha_bar = None
            timesteps = times * num_timesteps
            noisy = interpolate_noise(x0, noise, times)
        else:
            timesteps = discrete_timesteps(times, num_timesteps)
            alpha_bar = self.alphas_cumprod[timesteps]
            noisy = add_noise(x0, noise, alpha_bar)
        return self.predict(noisy, timesteps, conditioning), alpha_bar

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Run the network on noisy samples.

        Args:
            noisy: (B, C, h, h).
            timesteps: Timesteps of the schedule, (B,).
            conditioning: Condition of each sample.

        Returns:
            (B, C, h, h).
        """
        return predict(self.network, noisy, timesteps, conditioning)


def error_over_times(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning
) -> Tensor:
    """Compute the error of each sample, averaged over its N times, (B,), in a single pass of the network.

    Args:
        denoiser: Module that is called like a `Denoiser`.
        x0: Clean samples, (B, C, h, h).
        noise: Noise at each time, (B, N, C, h, h).
        times: Diffusion times, (B, N).
        conditioning: Conditioning of each sample, the same at all times, so its gradients add up. Or of each time of
            each sample, (B N).
    """
    num_times = times.shape[1]
    error: Tensor = denoiser(
        x0.repeat_interleave(num_times, dim=0),  # (B N, C, h, h)
        noise.flatten(0, 1),
        times.flatten(),
        # A conditioning may already have a row for each time, if patches are drawn anew for each.
        conditioning.repeat_interleave(times.numel() // len(conditioning)),
    )
    return error.view(times.shape).mean(dim=1)
