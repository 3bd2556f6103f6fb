"""PHI-S: statistics of a teacher's features that put several teachers on the same scale."""

# T width of the features

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vfm.plugin import UserError, store_files
from vfm_eva.targets.moments import moments


class Statistics(nn.Module):
    """Buffers that are fitted to a target's features before training starts, and saved to resume the run."""

    def fitted(self, parts: Iterable[Tensor]) -> Statistics:
        """Fit statistics to features (..., T) that arrive in parts."""
        raise NotImplementedError

    @classmethod
    def load(cls, file: Path) -> Self:
        """Load the buffers from a file."""
        return cls(**store_files.read_safetensors(file))

    def save(self, file: Path) -> None:
        """Write the buffers atomically: a crash leaves no incomplete file under that name."""
        part = file.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, part)
        part.rename(file)


class PhiS(Statistics):
    """An invertible map to features with mean 0 and variance 1 in every channel.

    The map is `rotation @ (features - mean) / scale`, with one scale for all directions. Unlike whitening, a single
    scale preserves the shape of the distribution. The rotation spreads the variance equally over the channels.

    Args:
        mean: (T,).
        rotation: (T, T), orthogonal.
        scale: Square root of the mean channel variance, a scalar.

    Source: Ranzinger et al. 2024, PHI-S (arXiv:2410.01680). The paper rotates by a PCA and a Hadamard matrix. Hadamard
    matrices exist for some widths only. Here plane rotations give equal variances at any width.
    """

    rotates: ClassVar[bool] = True

    def __init__(self, mean: Tensor, rotation: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.rotation: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("rotation", rotation)
        self.register_buffer("scale", scale)

    @classmethod
    def identity(cls, width: int) -> Self:
        """Build the identity map."""
        return cls(torch.zeros(width), torch.eye(width), torch.ones(()))

    @classmethod
    def fit(cls, parts: Iterable[Tensor]) -> Self:
        """Fit the map to features (..., T) that arrive in parts. Sums are accumulated in fp64.

        Raises:
            UserError: If all features are equal.
        """
        _, mean, covariance = moments(parts)
        scale = covariance.trace().div(len(mean)).clamp(min=0).sqrt()
        # A spread of this size is rounding of the features themselves.
        if scale <= 1e-6 * mean.abs().max():
            raise UserError("loss: the teacher's features are equal everywhere: nothing can be learned from them")
        rotation = equal_variances(covariance).float() if cls.rotates else torch.eye(len(mean))
        return cls(mean.float(), rotation, scale.float())

    def fitted(self, parts: Iterable[Tensor]) -> Self:
        """Fit a map to features (..., T) that arrive in parts."""
        return self.fit(parts)

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features, (..., T)."""
        return (features.to(self.mean.dtype) - self.mean) @ self.rotation.T / self.scale

    def inverse(self, standardised: Tensor) -> Tensor:
        """Convert standardised features back, (..., T)."""
        return self.scale * standardised.to(self.mean.dtype) @ self.rotation + self.mean

    def to_features(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Convert a linear layer, (T, D) and (T,), from predicting standardised features to predicting features."""
        return self.scale * self.rotation.T @ weight, self.inverse(bias)

    def from_features(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Convert a linear layer from predicting features to predicting standardised features."""
        return self.rotation @ weight / self.scale, self(bias)


class GlobalScale(PhiS):
    """PHI-S without its rotation.

    Features are centred and divided by one number, so their mean variance is 1.
    """

    rotates: ClassVar[bool] = False


def equal_variances(covariance: Tensor) -> Tensor:
    """Compute an orthogonal matrix R, (T, T), such that the diagonal of R covariance R^T is constant.

    Starting from the principal components, each step rotates the channels with the largest and the smallest variance
    into each other until the first has the mean variance and is finished. The remaining channels stay uncorrelated.

    Args:
        covariance: (T, T), fp64.

    Source: Bendel and Mickey 1978, Population correlation matrices for sampling experiments.
    """
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    # Start with principal axes. Rotating the axes with most and least variance until one has the mean settles a channel
    # in each round.
    rotation: Tensor = directions.T.contiguous()
    remaining: list[float] = variances.tolist()
    target = sum(remaining) / len(remaining)
    channels = list(range(len(remaining)))
    while len(channels) > 1:
        low = min(channels, key=remaining.__getitem__)
        high = max(channels, key=remaining.__getitem__)
        above = remaining[high] - target
        below = target - remaining[low]
        if above <= 0 or below <= 0:  # all channels have the mean variance up to rounding
            break
        # The angle for which the first of both channels gets the mean variance. The second gets the rest.
        cos = math.sqrt(below / (above + below))
        sin = math.sqrt(above / (above + below))
        first = rotation[high].clone()
        second = rotation[low].clone()
        rotation[high], rotation[low] = cos * first + sin * second, cos * second - sin * first
        remaining[low] += above
        channels.remove(high)
    return rotation
