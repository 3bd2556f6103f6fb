"""A teacher's features in fewer numbers: their coordinates along the directions in which they vary most."""

# T width of the features, n components

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vfm.config import UserError

FILE = "pca.safetensors"


class Pca(nn.Module):
    """`features = coordinates @ components + mean`, as near as n components allow.

    Args:
        mean: (T,).
        components: (n, T), orthonormal rows, the direction of most variance first.
        kept: the share of the variance that they keep.
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
        """From features (..., T) that come in parts; sums are kept in fp64.

        Raises:
            UserError: fewer features than components.
        """
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for part in parts:
            rows = part.flatten(0, -2).double().cpu()
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        if count < num_components:
            raise UserError(f"a PCA of {num_components} components wants as many patches; there are {count}")
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))  # ascending
        components = directions.flip(1)[:, :num_components].T
        kept = variances.flip(0)[:num_components].sum() / variances.sum()
        return cls(mean.float(), components.float().contiguous(), kept.float())

    @classmethod
    def load(cls, directory: Path) -> Pca:
        """From a folder in which one was saved."""
        return cls(**load_file(directory / FILE))

    def save(self, directory: Path) -> None:
        """Writes `pca.safetensors`; it is there whole or not at all."""
        part = directory / f"{FILE}.part"
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, part)
        part.rename(directory / FILE)

    def coordinates(self, features: Tensor) -> Tensor:
        """(..., n) of (..., T)."""
        return (features.to(self.mean.dtype) - self.mean) @ self.components.T

    def forward(self, coordinates: Tensor) -> Tensor:
        """(..., T) of (..., n)."""
        return coordinates.to(self.mean.dtype) @ self.components + self.mean
