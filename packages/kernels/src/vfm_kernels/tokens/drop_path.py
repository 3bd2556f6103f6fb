"""Stochastic depth that runs a branch on part of the batch, so that dropped samples cost nothing."""

from collections.abc import Callable

import torch
from torch import Tensor


def residual_of_subset(
    x: Tensor,
    branch: Callable[[Tensor, Tensor], Tensor],
    drop_rate: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute `x + branch(x)` with the branch on a random subset of the samples, scaled to the same mean.

    Drop path draws for each sample. Here a fixed number is kept, round(B (1 - drop_rate)) and at least one, so shapes
    are static. It is an option because its distribution differs from drop path's.

    Args:
        x: (B, ..., D).
        branch: Maps kept samples (K, ..., D) and their indices (K,) to (K, ..., D): norm, attention, layer scale.
        drop_rate: Fraction of the samples to drop, in [0, 1).
        generator: Generator on the CPU or the device of `x`. Default: torch's global one.

    Returns:
        (B, ..., D) in the dtype of `x`.

    Raises:
        ValueError: If the rate is outside [0, 1).

    Source: Oquab et al. 2023, DINOv2 (arXiv:2304.07193), section 5.
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate must be in [0, 1), got {drop_rate}")
    batch = len(x)
    # At least one, since the scale of the branch divides by it.
    num_kept = max(1, round(batch * (1 - drop_rate)))
    if num_kept == batch:
        return x + branch(x, torch.arange(batch, device=x.device)).to(x.dtype)
    device = x.device if generator is None else generator.device
    index = torch.randperm(batch, generator=generator, device=device)[:num_kept].to(x.device)
    # Scaled so that the expected sum over the batch is that of a branch that drops nothing.
    return x.index_add(0, index, branch(x[index], index).to(x.dtype), alpha=batch / num_kept)
