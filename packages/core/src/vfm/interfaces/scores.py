"""Results of evaluations, with scores, intervals, paired tests, predictions, and a hash of the data.

This module is light, so that a configuration can name these types. `vfm.statistics` implements the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

Columns = Mapping[str, Any]  # one array or list per column, all of the same length


@dataclass(frozen=True)
class Difference:
    """Difference between two models, with its 95 % interval, its p-value, and the name of the test."""

    low: float
    high: float
    p_value: float
    test: str


class Score(Protocol):
    """A metric of a model, with all data that its interval and its paired test need.

    `vfm.statistics.Accuracy` (correct or wrong items), `MeanAveragePrecision` and `ResampledScore` are scores.
    """

    @property
    def metric(self) -> str:
        """Name of the metric, such as `acc1`."""
        ...

    @property
    def chance(self) -> float | None:
        """Expected value of a random guess, if it is known."""
        ...

    @property
    def value(self) -> float:
        """The score, 0 to 1."""
        ...

    @property
    def num_independent(self) -> int:
        """Number of independent items. These are images if an image has several items."""
        ...

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Compute the 95 % interval of the score."""
        ...

    def difference(self, baseline: Self, seed: int = 0) -> Difference:
        """Compute this score minus the baseline's, on the same items."""
        ...


@dataclass(frozen=True)
class ModelResult:
    """Result of a model on the items of a dataset.

    Attributes:
        scores: One per metric. The first is the main one.
        predictions: Tables by name, one row per item. Each is written as `predictions/NAME.parquet`.
        details: Further content of the result file, such as the prompts or the chosen penalty.
    """

    scores: Sequence[Score]
    predictions: Mapping[str, Columns]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """Results of all models on one dataset.

    Attributes:
        data_sha256: Hash of the evaluated items (`vfm.eval.data_hash`). Results can agree only on equal data.
        results: By name of the model, all on the same items in the same order.
        language: Language of the captions or class names.
    """

    data_sha256: str
    results: Mapping[str, ModelResult]
    language: str = "en"
