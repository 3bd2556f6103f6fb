"""The artifact of an evaluation, with its metrics and comparisons."""

from pydantic import Field

from vfm.base import Record
from vfm.interfaces.artifact import Artifact


class Metric(Record):
    """One measured value with its uncertainty."""

    name: str = Field(description="name of the metric, such as acc1")
    value: float = Field(description="value in its unit")
    unit: str = Field(default="share", description="share (0 to 1), or the unit of the value")
    n: int = Field(description="number of independent items behind the value")
    low: float = Field(description="lower end of the 95 % interval")
    high: float = Field(description="upper end of the 95 % interval")
    model: str = Field(default="", description="name of the evaluated model's stage")
    chance: float | None = Field(default=None, description="expected value of a random guess")


class Comparison(Record):
    """Difference between a model and the first one, on the same items or over the same seeds."""

    metric: str = Field(description="name of the compared metric")
    model: str = Field(description="name of the compared model")
    baseline: str = Field(description="name of the first model")
    difference: float = Field(description="the model's value minus the baseline's")
    low: float = Field(description="lower end of the 95 % interval of the difference")
    high: float = Field(description="upper end of the 95 % interval")
    p_value: float = Field(description="two-sided p-value")
    test: str = Field(
        description="name of the test: exact McNemar, sign flips, paired resamples, paired t over seeds, ..."
    )
    counts_as: float = Field(
        1.0,
        gt=0,
        le=1,
        description="as how many tests it counts in corrections; less than 1 if its metric moves with further ones on"
        " the same resamples (max-t)",
    )


class Report(Artifact):
    """Result of an evaluation, with metrics, n, intervals and paired tests. Predictions are in parquet files."""

    task: str = Field(description="name of the task in results, such as zeroshot_classification")
    dataset: str = Field(description="name of the dataset's stage")
    metrics: list[Metric] = Field(description="each metric of each model")
    comparisons: list[Comparison] = Field([], description="comparisons of each later model with the first")
    main: list[str] = Field([], description="metrics that decide between models; empty: the first one")

    @property
    def main_metrics(self) -> list[str]:
        """Names of the metrics that decide between models."""
        return self.main or [metric.name for metric in self.metrics[:1]]
