"""Training objectives of denoisers, with one target for each kind of model.

There are three kinds. `epsilon` predicts the noise (SD 1.5, SD 2.1-base), `v` the velocity of a variance-preserving
path (SD 2.1 at 768), and `flow` the velocity of the straight path from data to noise (FLUX, GenHancer). The two
velocities differ in sign and scale. A model trained against the target of another kind learns nothing, and its loss
does not show it.
"""

# B batch; x0, noise and noisy are (B, ...) of any equal shape

from typing import Literal, get_args

import torch
from torch import Tensor

from vfm_kernels.dispatch.precision import at_least_fp32

DiffusionKind = Literal["epsilon", "v", "flow"]
TimeDistribution = Literal["uniform", "logit_normal", "stratified"]


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Add noise on the variance-preserving path, for `epsilon` and `v`: sqrt(a) x0 + sqrt(1 - a) noise.

    Args:
        x0: Clean data or latents, (B, ...).
        noise: Unit normal, like `x0`.
        alpha_bar: Remaining fraction of the signal's variance, (B,), in [0, 1], such as `alphas_cumprod[timesteps]`
            in a scheduler.

    Returns:
        Like `x0`.

    Source: Ho et al. 2020, DDPM (arXiv:2006.11239), equation 4.
    """
    alpha_bar = _per_sample(alpha_bar, x0)
    return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise).to(x0.dtype)


def interpolate_noise(x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Add noise on the straight path, for `flow`: (1 - t) x0 + t noise.

    Args:
        x0: Clean data or latents, (B, ...).
        noise: Unit normal, like `x0`.
        times: Fraction of noise, (B,), in [0, 1], where 1 is pure noise.

    Returns:
        Like `x0`.

    Source: Liu et al. 2022, Rectified Flow (arXiv:2209.03003). Time runs from data to noise as in SD 3 and FLUX.
    """
    times = _per_sample(times, x0)
    return ((1 - times) * x0 + times * noise).to(x0.dtype)


def diffusion_target(kind: DiffusionKind, x0: Tensor, noise: Tensor, alpha_bar: Tensor | None = None) -> Tensor:
    """Compute the tensor that a denoiser of this kind must predict.

    Args:
        kind: `epsilon`: noise; `v`: sqrt(a) noise - sqrt(1 - a) x0; `flow`: noise - x0.
        x0: Clean data or latents, (B, ...).
        noise: Noise that was added to `x0`.
        alpha_bar: As in `add_noise`, (B,), needed by `v` only.

    Returns:
        Like `x0`. For `v`, in the wider dtype of `x0` and `alpha_bar`.

    Raises:
        ValueError: If the kind is unknown, or it is `v` and `alpha_bar` is missing.

    Source: for `v`, Salimans and Ho 2022, Progressive Distillation (arXiv:2202.00512), appendix D.
    """
    if kind == "epsilon":
        return noise
    if kind == "flow":
        return noise - x0
    if kind != "v":
        raise ValueError(f"{kind!r} is not a valid kind; choose from {', '.join(get_args(DiffusionKind))}")
    if alpha_bar is None:
        raise ValueError("kind 'v' needs alpha_bar")
    alpha_bar = _per_sample(alpha_bar, x0)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0


def denoising_error(
    kind: DiffusionKind, prediction: Tensor, x0: Tensor, noise: Tensor, alpha_bar: Tensor | None = None
) -> Tensor:
    """Compute the mean squared error of each sample between a denoiser's prediction and the target of its kind.

    Args:
        kind: See `diffusion_target`.
        prediction: The denoiser's output, (B, ...).
        x0: Clean data or latents, like `prediction`.
        noise: Noise that was added to `x0`.
        alpha_bar: (B,), needed by `v` only.

    Returns:
        (B,) in fp32: the loss before its mean, so that samples can be weighted (min-SNR) or plotted over timesteps.

    Raises:
        ValueError: If shapes are inconsistent, or as for `diffusion_target`.
    """
    target = diffusion_target(kind, x0, noise, alpha_bar)
    if prediction.shape != target.shape:
        raise ValueError(
            f"expected a prediction of its target's shape {tuple(target.shape)}, got {tuple(prediction.shape)}"
        )
    return (at_least_fp32(prediction) - at_least_fp32(target)).square().flatten(1).mean(dim=1)


def sample_times(
    distribution: TimeDistribution,
    num_samples: int,
    generator: torch.Generator | None = None,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw random times in [0, 1) for noising samples. Time 0 is clean.

    Args:
        distribution: `uniform` (DIVA); `logit_normal`, the sigmoid of a normal (GenHancer, SD 3: a condition matters
            most in the middle); `stratified`, uniform with one draw in each of `num_samples` equal parts of [0, 1) in
            random order. The last one lowers the variance of the batch's mean loss.
        num_samples: Number of times.
        generator: Generator on `device`. Default: torch's global one.
        mean: Mean of the normal distribution.
        std: Standard deviation of the normal distribution. GenHancer finds 1 best among 0.1 to 10.
        shift: Above 1 moves times towards noise, t' = s t / (1 + (s - 1) t), as larger images need.
        device: Device of the times. Default: the generator's.

    Returns:
        (num_samples,) fp32.

    Raises:
        ValueError: If the distribution is unknown, or `std` or `shift` is not positive.

    Source: Esser et al. 2024, SD 3 (arXiv:2403.03206), sections 3.1 and 5.3.2.
    """
    if std <= 0 or shift <= 0:
        raise ValueError(f"std and shift must be positive, got {std} and {shift}")
    if device is None and generator is not None:
        device = generator.device
    if distribution == "logit_normal":
        times = torch.sigmoid(mean + std * torch.randn(num_samples, generator=generator, device=device))
    elif distribution == "uniform":
        times = torch.rand(num_samples, generator=generator, device=device)
    elif distribution == "stratified":
        # One time from each of as many equal parts, so that a small batch covers the whole range.
        parts = torch.randperm(num_samples, generator=generator, device=device)
        times = (parts + torch.rand(num_samples, generator=generator, device=device)) / num_samples
    else:
        raise ValueError(
            f"{distribution!r} is not a valid distribution; choose from {', '.join(get_args(TimeDistribution))}"
        )
    # The shift of Stable Diffusion 3 for higher resolutions, which moves times towards noise.
    shifted = times if shift == 1 else shift * times / (1 + (shift - 1) * times)
    return shifted.clamp(max=1 - 2**-24)  # fp32 rounds the upper tail to 1, for which no schedule has an entry


def discrete_timesteps(times: Tensor, num_train_timesteps: int) -> Tensor:
    """Convert times to entries of a discrete schedule.

    Args:
        times: Times in [0, 1).
        num_train_timesteps: Number T of entries.

    Returns:
        int64, 0 to T - 1.
    """
    return (times * num_train_timesteps).long().clamp(0, num_train_timesteps - 1)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, ..., 1). The dtype stays, because in bf16 1 - a rounds to 0 for a above 0.998."""
    if values.shape != like.shape[:1]:
        raise ValueError(f"expected one value per sample, ({like.shape[0]},), got {tuple(values.shape)}")
    return values.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
