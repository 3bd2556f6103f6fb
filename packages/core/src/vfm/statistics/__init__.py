"""Intervals, paired tests, and the two kinds of score that evaluations report.

Needs numpy and scipy, not torch.
"""

from vfm.statistics.accuracy import Accuracy, compare, to_metric
from vfm.statistics.average_precision import MeanAveragePrecision, average_precisions
from vfm.statistics.intervals import (
    bootstrap_interval,
    effective_size,
    mean_per_class_interval,
    stratified_mean,
    t_interval,
    wilson_interval,
)
from vfm.statistics.max_t import compare_models, effective_tests
from vfm.statistics.paired import corrected_interval, holm, mcnemar_exact, newcombe_interval, paired_t, sign_flip_p
from vfm.statistics.power import detectable_difference
from vfm.statistics.resampling import ResampledScore, image_weights, paired_resamples

__all__ = [
    "Accuracy",
    "MeanAveragePrecision",
    "ResampledScore",
    "average_precisions",
    "bootstrap_interval",
    "compare",
    "compare_models",
    "corrected_interval",
    "detectable_difference",
    "effective_size",
    "effective_tests",
    "holm",
    "image_weights",
    "mcnemar_exact",
    "mean_per_class_interval",
    "newcombe_interval",
    "paired_resamples",
    "paired_t",
    "sign_flip_p",
    "stratified_mean",
    "t_interval",
    "to_metric",
    "wilson_interval",
]  # fmt: skip
