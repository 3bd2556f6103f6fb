"""A PCA of a teacher's features, which lets them be stored with fewer values."""

# T width of the features, n components

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vfm.plugin import UserError, store_files
from vfm_eva.targets.moments import moments

FILE = "pca.safetensors"


class Pca(nn.Module):
    """Approximates features as `coordinates @ components + mean`.

    Args:
        mean: (T,).
        components: (n, T), orthonormal rows sorted by decreasing variance.
        kept: Fraction of the variance that the components explain.
    """

    def __init__(self, mean: Tensor, components: Tensor, kept: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.components: Tensor
        self.kept: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.register_buffer("kept", kept)

    @classmethod
    def fit(cls, parts: Iterable[Tensor], num_components: int) -> Pca:
        """Fit a PCA to features (..., T) that arrive in parts. Sums are accumulated in fp64.

        Raises:
            UserError: If there are fewer features than components.
        """
        count, mean, covariance = moments(parts)
        if count < num_components:
            raise UserError(f"a PCA of {num_components} components needs at least as many patches, got {count}")
        variances, directions = torch.linalg.eigh(covariance)  # ascending
        components = directions.flip(1)[:, :num_components].T
        explained = variances.flip(0)[:num_components].sum() / variances.sum()
        return cls(mean.float(), components.float().contiguous(), explained.float())

    @classmethod
    def load(cls, directory: Path) -> Pca:
        """Load a PCA from the folder where it was saved."""
        return cls(**store_files.read_safetensors(directory / FILE))

    def save(self, directory: Path) -> None:
        """Write `pca.safetensors` atomically: a crash leaves no incomplete file under that name."""
        part = directory / f"{FILE}.part"
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, part)
        part.rename(directory / FILE)

    def coordinates(self, features: Tensor) -> Tensor:
        """Project features (..., T) to coordinates (..., n)."""
        return (features.to(self.mean.dtype) - self.mean) @ self.components.T

    def forward(self, coordinates: Tensor) -> Tensor:
        """Reconstruct features (..., T) from coordinates (..., n)."""
        return coordinates.to(self.mean.dtype) @ self.components + self.mean
