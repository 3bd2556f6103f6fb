"""Configurations of core's evaluations, `eval.*`. Their work is in `vfm.eval`."""

from vfm.stages.evaluation.base import FeatureEvaluation, ModelEvaluation, ReadSettings
from vfm.stages.evaluation.features import AttentiveProbe, Classify, FewShot, Knn, LinearProbe
from vfm.stages.evaluation.reports import Curves, LeftOut, SummarisedReport, Summary
from vfm.stages.evaluation.text_image import Choices, MmvpVlm, Retrieval, ZeroShot

EVALUATIONS = (
    ZeroShot,
    Retrieval,
    Classify,
    LinearProbe,
    AttentiveProbe,
    FewShot,
    Knn,
    MmvpVlm,
    Choices,
    Curves,
    Summary,
)

__all__ = [
    "EVALUATIONS", "AttentiveProbe", "Choices", "Classify", "Curves", "FeatureEvaluation", "FewShot", "Knn", "LeftOut",
    "LinearProbe", "MmvpVlm", "ModelEvaluation", "ReadSettings", "Retrieval", "SummarisedReport", "Summary", "ZeroShot",
]  # fmt: skip
