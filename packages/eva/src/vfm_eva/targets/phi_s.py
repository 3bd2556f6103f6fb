"""Statistics of a teacher's features, by which several teachers are balanced: PHI-S."""

# T width of the features

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vfm.plugin import UserError, store_files


class Statistics(nn.Module):
    """Buffers that are fitted to a target's features before a training, and saved for its next run."""

    def fitted(self, parts: Iterable[Tensor]) -> Statistics:
        """Return statistics of features (..., T) that come in parts."""
        raise NotImplementedError

    @classmethod
    def load(cls, file: Path) -> Self:
        """Load them from a file."""
        return cls(**store_files.read_safetensors(file))

    def save(self, file: Path) -> None:
        """Write them; a crash leaves no incomplete file under that name."""
        part = file.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, part)
        part.rename(file)


class PhiS(Statistics):
    """An invertible map to features of mean 0 whose channels all have variance 1, with one factor for all directions.

    `rotation @ (features - mean) / scale`. One factor keeps the shape of the distribution, which whitening does not,
    and the rotation gives every channel the same share of the variance.

    Args:
        mean: (T,).
        rotation: (T, T), orthogonal.
        scale: root of the mean variance of a channel, a scalar.

    Source: Ranzinger et al. 2024, PHI-S (arXiv:2410.01680). There the rotation is a Hadamard matrix after a PCA, which
    exists for some widths; here plane rotations give equal variances at any width.
    """

    def __init__(self, mean: Tensor, rotation: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.rotation: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("rotation", rotation)
        self.register_buffer("scale", scale)

    @classmethod
    def identity(cls, width: int) -> PhiS:
        """Return the map that changes nothing."""
        return cls(torch.zeros(width), torch.eye(width), torch.ones(()))

    @classmethod
    def fit(cls, parts: Iterable[Tensor]) -> PhiS:
        """Fit features (..., T) that come in parts; sums are kept in fp64.

        Raises:
            UserError: all features are equal.
        """
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for part in parts:
            rows = part.flatten(0, -2).double().cpu()
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        scale = covariance.trace().div(len(mean)).clamp(min=0).sqrt()
        if scale <= 1e-6 * mean.abs().max():
            raise UserError("phi_s: the teacher's features are equal everywhere: nothing can be learned from them")
        return cls(mean.float(), equal_variances(covariance).float(), scale.float())

    def fitted(self, parts: Iterable[Tensor]) -> PhiS:
        """Return `PhiS.fit` of features that come in parts."""
        return PhiS.fit(parts)

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised features, (..., T)."""
        return (features.to(self.mean.dtype) - self.mean) @ self.rotation.T / self.scale

    def inverse(self, standardised: Tensor) -> Tensor:
        """Return the features, (..., T), of standardised ones."""
        return self.scale * standardised.to(self.mean.dtype) @ self.rotation + self.mean

    def to_features(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the linear layer, (T, D) and (T,), that predicts features, for one that predicts standardised ones."""
        return self.scale * self.rotation.T @ weight, self.inverse(bias)

    def from_features(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inverse of `to_features`."""
        return self.rotation @ weight / self.scale, self(bias)


def equal_variances(covariance: Tensor) -> Tensor:
    """Return an orthogonal matrix R, (T, T), for which the diagonal of R covariance R^T is constant.

    In the basis of the principal components each step rotates the channel of the largest variance with that of the
    smallest, so that the first gets the mean variance and is done. The others stay uncorrelated with one another.

    Args:
        covariance: (T, T), fp64.

    Source: Bendel and Mickey 1978, Population correlation matrices for sampling experiments.
    """
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    rotation: Tensor = directions.T.contiguous()
    remaining: list[float] = variances.tolist()
    target, channels = sum(remaining) / len(remaining), list(range(len(remaining)))
    while len(channels) > 1:
        low, high = min(channels, key=remaining.__getitem__), max(channels, key=remaining.__getitem__)
        above, below = remaining[high] - target, target - remaining[low]
        if above <= 0 or below <= 0:  # all of them have the mean variance, to rounding
            break
        cos, sin = math.sqrt(below / (above + below)), math.sqrt(above / (above + below))
        first, second = rotation[high].clone(), rotation[low].clone()
        rotation[high], rotation[low] = cos * first + sin * second, cos * second - sin * first
        remaining[low] += above
        channels.remove(high)
    return rotation
