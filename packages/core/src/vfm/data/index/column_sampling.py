"""Sample each value of a column equally often, or each sample in proportion to its weight.

The values are read once, without the images. A sample without a value is drawn as often as the average sample, and
counted as bad when it is read.
"""

# N samples

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.index.mixture import Mixture
from vfm.data.index.repeated import RepeatedEpochs
from vfm.data.index.source import Samples
from vfm.data.samples.columns import column_name
from vfm.data.samples.order import Epochs
from vfm.data.samples.sample import BadSample, Sample, raise_if_unreachable
from vfm.interfaces import ColumnSampler

Value = str | float | None
Factors = NDArray[np.float64]
LABEL = "label"
SHOWN = 6  # values in a line


@runtime_checkable
class HasColumns(Protocol):
    """Samples with columns or labels, such as a `Source` or a `VideoSource`."""

    shard_sizes: NDArray[np.int64]
    epochs: Epochs

    def __len__(self) -> int: ...

    def facts(self, index: int) -> Sample:
        """Read a sample without its image.

        Raises:
            BadSample: If the sample cannot be used.
        """
        ...


def sample_by_column(samples: Samples, sampler: ColumnSampler, seed: int) -> Samples:
    """Copy samples, with epochs that a column determines.

    Each dataset of a mixture keeps its share.

    Args:
        samples: The samples.
        sampler: The column and its weights.
        seed: Seed of the rounding.

    Raises:
        UserError: If the samples do not have the column, or a weight is not a number of at least 0.
    """
    if isinstance(samples, Mixture):
        sources: Any = [sample_by_column(source, sampler, seed) for source in samples.sources]
        return Mixture(sources, samples.turns.tolist())
    sampled: Any = copy.copy(samples)
    factors = factors_of(column_values(samples, sampler.column), sampler, str(samples.directory))
    sampled.epochs = RepeatedEpochs(sampled.shard_sizes, factors, seed)
    return sampled  # type: ignore[no-any-return]


def column_values(samples: object, column: str) -> list[Value]:
    """Read a column of all samples, or their classes for `label`.

    Samples that cannot be used have None.

    Raises:
        UserError: If the samples do not have the column.
    """
    if not isinstance(samples, HasColumns):
        raise UserError(f"sampler: expected samples with columns or labels, got {type(samples).__name__}")
    values: list[Value] = []
    columns: set[str] = set()
    for number in range(len(samples)):
        try:
            sample = samples.facts(number)
        except BadSample as bad:
            raise_if_unreachable(bad)  # processes that read other values would draw other epochs
            values.append(None)
            continue
        columns.update(sample.columns)
        values.append(sample.columns.get(column, sample.label if column == LABEL else None))
    if values.count(None) < len(values):
        return values
    raise UserError(f"sampler: expected a column of the data, {_listed(columns)}, got {column!r}")


def _listed(columns: set[str]) -> str:
    return ", ".join(sorted(columns | {f"{LABEL} (the class)"}))


def _group_names(values: Sequence[Value]) -> list[str]:
    return [str(value) for value in values if value is not None]


def factors_of(values: Sequence[Value], sampler: ColumnSampler, where: str) -> Factors:
    """Compute how often each sample is drawn in an epoch on average.

    Args:
        values: Values of the column, (N,).
        sampler: The column and its weights.
        where: The dataset, for the error.

    Returns:
        (N,) with mean 1.

    Raises:
        UserError: If a weight is not a number of at least 0, or all are 0.
    """
    known = np.array([value is not None for value in values])
    factors = np.ones(len(values))
    if sampler.balanced:
        groups = np.array(_group_names(values))
        _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        factors[known] = len(groups) / (len(sizes) * sizes[group])
        return factors
    weights = np.array([_weight(value, sampler.column, where) for value in values if value is not None])
    if not weights.sum():
        raise UserError(f"{where}: sampler: expected a weight above 0 in column {sampler.column!r}, got 0 everywhere")
    factors[known] = weights / weights.mean()
    return factors


def _weight(value: str | float, column: str, where: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(f"{where}: sampler: expected a number of at least 0 in column {column!r}, got {value!r}")
    return weight


@dataclass(frozen=True)
class SamplingSummary:
    """Facts about a sampler's epochs.

    Attributes:
        num_samples: Samples of the data, and draws of an epoch on average.
        num_distinct: Different samples in an epoch, on average.
        effective_size: Number of equally weighted samples with the same standard error of the mean (Kish).
        sizes: Samples of each value, for `balanced`.
    """

    num_samples: int
    num_distinct: float
    effective_size: float
    sizes: dict[str, int]

    @classmethod
    def of(cls, values: Sequence[Value], sampler: ColumnSampler, where: str) -> SamplingSummary:
        """Summarise a column.

        Raises:
            UserError: As in `factors_of`.
        """
        factors = factors_of(values, sampler, where)
        sizes: dict[str, int] = {}
        if sampler.balanced:
            names, counts = np.unique(_group_names(values), return_counts=True)
            order = np.argsort(-counts, kind="stable")
            sizes = dict(zip(names[order].tolist(), counts[order].tolist(), strict=True))
        size = float(factors.sum() ** 2 / np.square(factors).sum())
        return cls(len(factors), float(np.minimum(factors, 1).sum()), size, sizes)

    def line(self, sampler: ColumnSampler) -> str:
        """Describe the epochs in a line."""
        text = f"weighted by {sampler.column}"
        if self.sizes:
            shown = [f"{name} {size:,}" for name, size in list(self.sizes.items())[:SHOWN]]
            more = [f"{len(self.sizes) - SHOWN:,} more"] if len(self.sizes) > SHOWN else []
            text = f"balanced by {sampler.column} ({', '.join(shown + more)})"
        return (
            f"{text}: an epoch of {self.num_samples:,} draws has about {self.num_distinct:,.0f} different samples,"
            f" effective size {self.effective_size:,.0f}"
        )


def known_columns(locations: Sequence[str]) -> list[str]:
    """List the columns that a sampler can name, if the stage of the data reads these locations."""
    return [*map(column_name, locations), LABEL]
