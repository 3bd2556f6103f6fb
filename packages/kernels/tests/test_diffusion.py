"""Targets of each kind of denoiser: diffusers' own schedulers, derivatives of the paths, and distributions of times."""

import math

import pytest
import torch

from vfm_kernels import (
    add_noise,
    denoising_error,
    diffusion_target,
    discrete_timesteps,
    interpolate_noise,
    sample_times,
)

KINDS = ("epsilon", "v", "flow")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 4, 6, 6), torch.randn(5, 4, 6, 6), torch.tensor([0.999, 0.7, 0.5, 0.1, 0.005])


def test_noise_and_velocity_equal_those_of_diffusers(batch):
    diffusers = pytest.importorskip("diffusers")
    x0, noise, _ = batch
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([0, 17, 500, 800, 999])
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(add_noise(x0, noise, alpha_bar), scheduler.add_noise(x0, noise, timesteps))
    torch.testing.assert_close(
        diffusion_target("v", x0, noise, alpha_bar), scheduler.get_velocity(x0, noise, timesteps)
    )


def test_flow_noise_equals_that_of_diffusers(batch):
    diffusers = pytest.importorskip("diffusers")
    x0, noise, _ = batch
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    timesteps = scheduler.timesteps[[0, 10, 500, 900, 999]]
    expected = scheduler.scale_noise(x0, timesteps, noise)
    torch.testing.assert_close(interpolate_noise(x0, noise, timesteps / 1000), expected)


def test_targets_are_the_velocities_of_their_paths(batch):
    """v is d/dphi of the path at angle phi (a = cos^2 phi), flow is d/dt of the straight one."""
    x0, noise, alpha_bar = (tensor.double() for tensor in batch)
    phi, ones = torch.arccos(alpha_bar.sqrt()), torch.ones(5, dtype=torch.float64)
    _, velocity = torch.autograd.functional.jvp(lambda p: add_noise(x0, noise, p.cos().square()), phi, ones)
    torch.testing.assert_close(diffusion_target("v", x0, noise, alpha_bar), velocity)
    _, velocity = torch.autograd.functional.jvp(lambda t: interpolate_noise(x0, noise, t), alpha_bar, ones)
    torch.testing.assert_close(diffusion_target("flow", x0, noise), velocity)


def test_paths_start_at_the_data_and_end_at_noise(batch):
    x0, noise, _ = batch
    zeros, ones = torch.zeros(5), torch.ones(5)
    assert torch.equal(add_noise(x0, noise, ones), x0)
    assert torch.equal(add_noise(x0, noise, zeros), noise)
    assert torch.equal(interpolate_noise(x0, noise, zeros), x0)
    assert torch.equal(interpolate_noise(x0, noise, ones), noise)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_denoiser_of_one_kind_is_wrong_for_the_others(batch, kind):
    """Detect a model of one kind trained against the target of another, as in a released code."""
    x0, noise, alpha_bar = batch
    perfect = diffusion_target(kind, x0, noise, alpha_bar)
    for other in KINDS:
        loss = denoising_error(other, perfect, x0, noise, alpha_bar).mean().item()
        assert loss == 0 if other == kind else loss > 0.1


def test_the_error_equals_a_loop(batch):
    x0, noise, _ = (tensor.double() for tensor in batch)
    prediction = torch.randn_like(x0)
    errors = [float(((prediction[b] - noise[b]) ** 2).mean()) for b in range(5)]
    assert denoising_error("epsilon", prediction, x0, noise).tolist() == pytest.approx(errors, abs=1e-6)


def test_batched_timesteps_equal_sequential_ones(batch):
    x0, noise, alpha_bar = (tensor.double() for tensor in batch)
    prediction = torch.randn_like(x0)
    single = [denoising_error("v", prediction[[b]], x0[[b]], noise[[b]], alpha_bar[[b]]).item() for b in range(5)]
    assert denoising_error("v", prediction, x0, noise, alpha_bar).tolist() == pytest.approx(single, abs=1e-6)


def test_half_precision_errors_are_computed_in_fp32(batch):
    x0, noise, alpha_bar = batch
    loss = denoising_error("v", x0.bfloat16(), x0.bfloat16(), noise.bfloat16(), alpha_bar)
    rounded = (t.bfloat16().double() for t in (x0, x0, noise))
    exact = denoising_error("v", *rounded, alpha_bar=alpha_bar.double())
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(exact.tolist(), rel=1e-5)
    assert add_noise(x0.bfloat16(), noise.bfloat16(), alpha_bar).dtype == torch.bfloat16


def test_uniform_times_fill_every_discrete_step_equally():
    times = sample_times("uniform", 200_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(discrete_timesteps(times, 100), minlength=100)
    assert len(counts) == 100
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)


def test_logit_normal_times_have_their_logits_moments():
    times = sample_times("logit_normal", 100_000, torch.Generator().manual_seed(0), mean=0.5, std=2.0)
    logits = torch.logit(times.double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.03)
    assert logits.std().item() == pytest.approx(2.0, abs=0.03)


def test_wide_logit_normals_stay_within_the_schedule():
    times = sample_times("logit_normal", 10_000, torch.Generator().manual_seed(0), std=20.0)
    assert times.min() >= 0
    assert times.max() < 1
    assert discrete_timesteps(times, 1000).max() == 999


def test_stratified_times_have_one_draw_in_each_part_in_random_order():
    times = sample_times("stratified", 64, torch.Generator().manual_seed(0))
    assert torch.equal(discrete_timesteps(times.sort().values, 64), torch.arange(64))
    assert not torch.equal(times, times.sort().values)


def test_shift_moves_times_as_in_sd3():
    plain, shifted = (
        sample_times("uniform", 100, torch.Generator().manual_seed(0), shift=shift) for shift in (1.0, 3.0)
    )
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))


def test_invalid_arguments_raise(batch):
    x0, noise, alpha_bar = batch
    with pytest.raises(ValueError, match="'velocity' is not a valid kind; choose from epsilon, v, flow"):
        diffusion_target("velocity", x0, noise, alpha_bar)
    with pytest.raises(ValueError, match="needs alpha_bar"):
        diffusion_target("v", x0, noise)
    with pytest.raises(ValueError, match="expected one value per sample"):
        add_noise(x0, noise, alpha_bar[:2])
    with pytest.raises(ValueError, match="'beta' is not a valid distribution"):
        sample_times("beta", 3)
    with pytest.raises(ValueError, match="std and shift must be positive, got 0"):
        sample_times("logit_normal", 3, std=0)
    with pytest.raises(ValueError, match="expected a prediction of its target's shape"):
        denoising_error("epsilon", noise[:, :2], x0, noise)
