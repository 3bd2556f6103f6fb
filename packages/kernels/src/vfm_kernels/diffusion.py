"""The objectives of denoisers: each kind of model gets the target it was trained for, and no other.

Three kinds: `epsilon` predicts the noise (SD 1.5, SD 2.1-base), `v` the velocity of a variance-preserving path (SD 2.1
at 768), `flow` that of the straight path from data to noise (FLUX, GenHancer). The two velocities differ in sign and
scale; a model of one kind trained against the target of another learns nothing, and its loss does not say so.
"""

# B batch; x0, noise and noisy are (B, ...) of any equal shape

from typing import Literal, get_args

import torch
from torch import Tensor

from vfm_kernels.precision import at_least_fp32

DiffusionKind = Literal["epsilon", "v", "flow"]
TimeDistribution = Literal["uniform", "logit_normal", "stratified"]


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noisy data on the variance-preserving path, for `epsilon` and `v`: sqrt(a) x0 + sqrt(1 - a) noise.

    Args:
        x0: clean data or latents, (B, ...).
        noise: unit normal, like `x0`.
        alpha_bar: share of the signal's variance that is left, (B,), in [0, 1]; `alphas_cumprod[timesteps]` of a
            scheduler.

    Returns:
        Like `x0`.

    Source: Ho et al. 2020, DDPM (arXiv:2006.11239), equation 4.
    """
    alpha_bar = _per_sample(alpha_bar, x0)
    return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise).to(x0.dtype)


def interpolate_noise(x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Noisy data on the straight path, for `flow`: (1 - t) x0 + t noise.

    Args:
        x0: clean data or latents, (B, ...).
        noise: unit normal, like `x0`.
        times: share of noise, (B,), in [0, 1]; 1 is noise alone.

    Returns:
        Like `x0`.

    Source: Liu et al. 2022, Rectified Flow (arXiv:2209.03003); time runs from data to noise as in SD 3 and FLUX.
    """
    times = _per_sample(times, x0)
    return ((1 - times) * x0 + times * noise).to(x0.dtype)


def diffusion_target(kind: DiffusionKind, x0: Tensor, noise: Tensor, alpha_bar: Tensor | None = None) -> Tensor:
    """What a denoiser of this kind has to predict.

    Args:
        kind: `epsilon`: noise; `v`: sqrt(a) noise - sqrt(1 - a) x0; `flow`: noise - x0.
        x0: clean data or latents, (B, ...).
        noise: what was added to it.
        alpha_bar: as in `add_noise`, (B,); needed by `v` alone.

    Returns:
        Like `x0`; for `v` in the wider dtype of `x0` and `alpha_bar`.

    Raises:
        ValueError: an unknown kind, or `v` without `alpha_bar`.

    Source: for `v`, Salimans and Ho 2022, Progressive Distillation (arXiv:2202.00512), appendix D.
    """
    if kind == "epsilon":
        return noise
    if kind == "flow":
        return noise - x0
    if kind != "v":
        raise ValueError(f"kind is {kind!r}; allowed are {', '.join(get_args(DiffusionKind))}")
    if alpha_bar is None:
        raise ValueError("kind 'v' needs alpha_bar")
    alpha_bar = _per_sample(alpha_bar, x0)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0


def denoising_error(
    kind: DiffusionKind, prediction: Tensor, x0: Tensor, noise: Tensor, alpha_bar: Tensor | None = None
) -> Tensor:
    """Mean squared error between what the denoiser predicts and the target of its kind, of each sample.

    Args:
        kind: see `diffusion_target`.
        prediction: the denoiser's output, (B, ...).
        x0: clean data or latents, like `prediction`.
        noise: what was added to it.
        alpha_bar: (B,); needed by `v` alone.

    Returns:
        (B,) in fp32: the loss before its mean, so that samples can be weighed (min-SNR) and drawn over timesteps.

    Raises:
        ValueError: shapes that do not fit, and those of `diffusion_target`.
    """
    target = diffusion_target(kind, x0, noise, alpha_bar)
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)}, its target {tuple(target.shape)}; they must be equal"
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
    """Random times in [0, 1) at which to noise samples; 0 is clean.

    Args:
        distribution: `uniform` (DIVA); `logit_normal`, the sigmoid of a normal (GenHancer, SD 3: the middle is where a
            condition matters most); `stratified`, uniform with one draw in each of `num_samples` equal parts of [0, 1)
            in random order, which lowers the variance of the batch's mean loss.
        num_samples: draws.
        generator: on the device asked for; torch's global one by default.
        mean: of the normal.
        std: of the normal; GenHancer finds 1 best among 0.1 to 10.
        shift: above 1 moves times towards noise, t' = s t / (1 + (s - 1) t), as larger images need.
        device: where the times live; the generator's own by default.

    Returns:
        (num_samples,) fp32.

    Raises:
        ValueError: an unknown distribution, or `std` or `shift` not positive.

    Source: Esser et al. 2024, SD 3 (arXiv:2403.03206), sections 3.1 and 5.3.2.
    """
    if std <= 0 or shift <= 0:
        raise ValueError(f"std is {std} and shift {shift}; both must be positive")
    if device is None and generator is not None:
        device = generator.device
    if distribution == "logit_normal":
        times = torch.sigmoid(mean + std * torch.randn(num_samples, generator=generator, device=device))
    elif distribution == "uniform":
        times = torch.rand(num_samples, generator=generator, device=device)
    elif distribution == "stratified":
        parts = torch.randperm(num_samples, generator=generator, device=device)
        times = (parts + torch.rand(num_samples, generator=generator, device=device)) / num_samples
    else:
        raise ValueError(f"distribution is {distribution!r}; allowed are {', '.join(get_args(TimeDistribution))}")
    shifted = shift * times / (1 + (shift - 1) * times)
    return shifted.clamp(max=1 - 2**-24)  # fp32 rounds the upper tail to 1, which no schedule has an entry for


def discrete_timesteps(times: Tensor, num_train_timesteps: int) -> Tensor:
    """The entries 0 to num_train_timesteps - 1 of a discrete schedule that times in [0, 1) fall into, int64."""
    return (times * num_train_timesteps).long().clamp(0, num_train_timesteps - 1)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1). It keeps its own dtype: 1 - a is 0 in bf16 long before it is 0."""
    if values.shape != like.shape[:1]:
        raise ValueError(f"one value per sample is needed, ({like.shape[0]},); got {tuple(values.shape)}")
    return values.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
