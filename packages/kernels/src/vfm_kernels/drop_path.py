"""Stochastic depth by running a branch on part of the batch, so that what is dropped costs nothing."""

from collections.abc import Callable

import torch
from torch import Tensor


def residual_of_subset(
    x: Tensor,
    branch: Callable[[Tensor, Tensor], Tensor],
    drop_rate: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`x + branch(x)`, the branch taken by a random part of the samples alone and scaled to the same mean.

    Drop path decides for each sample; here a fixed number is kept, round(B (1 - drop_rate)) and at least one, so the
    number varies less and shapes are static. Opt in to it: the law is not quite that of the papers.

    Args:
        x: (B, ..., D).
        branch: the kept samples (K, ..., D) and their indices (K,) to (K, ..., D): norm, attention or MLP, layer scale.
        drop_rate: share of the samples that is dropped, in [0, 1).
        generator: on the CPU or the device of `x`; torch's global one by default.

    Returns:
        (B, ..., D) in the dtype of `x`.

    Raises:
        ValueError: a rate outside of [0, 1).

    Source: Oquab et al. 2023, DINOv2 (arXiv:2304.07193), section 5.
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate is {drop_rate}; it must be at least 0 and below 1")
    batch = len(x)
    kept = max(1, round(batch * (1 - drop_rate)))
    if kept == batch:
        return x + branch(x, torch.arange(batch, device=x.device)).to(x.dtype)
    device = x.device if generator is None else generator.device
    index = torch.randperm(batch, generator=generator, device=device)[:kept].to(x.device)
    return x.index_add(0, index, branch(x[index], index).to(x.dtype), alpha=batch / kept)
