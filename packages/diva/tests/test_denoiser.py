"""The objective of each kind of generator, batched times, and the spaces they work in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import diffusers
import pytest
import torch
from torch import Tensor, nn

from vfm_diva import UNet
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.denoiser import Denoiser, error_over_times
from vfm_diva.generator.generator import build_generator
from vfm_diva.generator.space import LatentSpace, PixelSpace
from vfm_kernels import diffusion_target, discrete_timesteps
from vfm_kernels.losses.diffusion import DiffusionKind

KINDS = get_args(DiffusionKind)
ALPHAS = torch.linspace(0.999, 0.001, 50)


class Oracle(nn.Module):
    """Predicts the target of one kind perfectly, from the clean sample and the noise."""

    def __init__(self, kind: DiffusionKind, x0: Tensor, noise: Tensor, times: Tensor) -> None:
        super().__init__()
        alpha_bar = ALPHAS[discrete_timesteps(times, len(ALPHAS))]
        self.target = diffusion_target(kind, x0, noise, alpha_bar)

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("predicted", KINDS)
def test_the_error_is_zero_only_for_the_target_of_its_own_kind(kind: DiffusionKind, predicted: DiffusionKind) -> None:
    draws = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=draws)
    times = torch.rand(5, generator=draws)
    denoiser = Denoiser(Oracle(predicted, x0, noise, times), kind, ALPHAS)
    error = denoiser(x0, noise, times, Conditioning(torch.zeros(5, 1, 8)))
    assert error.shape == (5,)
    assert (error.max() < 1e-10) if kind == predicted else (error.mean() > 0.1)


class Echo(nn.Module):
    """Records its inputs."""

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        self.noisy, self.timesteps = noisy, timesteps
        return SimpleNamespace(sample=noisy)


@pytest.mark.parametrize("kind", KINDS)
def test_time_0_is_the_clean_image_and_time_1_the_noise(kind: DiffusionKind) -> None:
    x0, noise = torch.randn(2, 2, 3, 4, 4)
    echo = Echo()
    Denoiser(echo, kind, torch.linspace(1, 0, 1000))(
        x0, noise, torch.tensor([0.0, 1 - 2**-24]), Conditioning(torch.zeros(2, 1, 8))
    )
    torch.testing.assert_close(echo.noisy, torch.stack([x0[0], noise[1]]), atol=1e-5, rtol=0)
    assert echo.timesteps[0] == 0
    assert 999 <= echo.timesteps[1] <= 1000


@pytest.mark.parametrize("kind", KINDS)
def test_times_in_one_pass_have_the_error_and_gradient_of_separate_passes(kind: DiffusionKind) -> None:
    draws = torch.Generator().manual_seed(1)
    generator = build_generator(image_size=8, embed_dim=16, network=UNet(block_out_channels=(8, 16)), prediction=kind)
    x0 = torch.randn(3, 3, 8, 8, generator=draws)
    noise, times = torch.randn(3, 4, 3, 8, 8, generator=draws), torch.rand(3, 4, generator=draws)
    gradients = []
    for batched in (True, False):
        context = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(2)).requires_grad_()
        if batched:
            error = error_over_times(generator.denoiser, x0, noise, times, Conditioning(context))
        else:
            parts = [generator.denoiser(x0, noise[:, n], times[:, n], Conditioning(context)) for n in range(4)]
            error = torch.stack(parts).mean(dim=0)
        (gradient,) = torch.autograd.grad(error.mean(), context)
        gradients.append((error.detach(), gradient))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)
    assert gradients[0][1].abs().max() > 0


def test_pixels_map_to_both_ends_of_the_range_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    space = PixelSpace()
    samples = space(every)
    assert (samples.min(), samples.max()) == (-1, 1)
    for rms in (1.0, 0.2):
        space.set_data_rms(rms)
        torch.testing.assert_close(space(every), samples / rms)
        assert torch.equal(space.decode(samples / rms), every)


def test_latents_are_the_posterior_mean_shifted_and_scaled() -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25, **blocks
    )
    space = LatentSpace(vae)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    latents = space(images)
    space.set_data_rms(0.2)  # no effect: the VAE has its scale
    assert torch.equal(space(images), latents)
    assert latents.shape == (2, space.channels, 8 // space.downscale, 8 // space.downscale)
    with torch.no_grad():
        mean = vae.encode(images / 127.5 - 1).latent_dist.mode()
        decoded = vae.decode(mean).sample
    torch.testing.assert_close(latents, (mean - 0.25) * 0.5)
    expected = ((decoded + 1) * 127.5).round().clamp(0, 255)
    assert (space.decode(latents).float() - expected).abs().max() <= 1
    assert not any(parameter.requires_grad for parameter in vae.parameters())
