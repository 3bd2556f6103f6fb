"""Configurations of core's evaluations, `eval.*`. Their work is in `vfm.eval`."""

from vfm.stages.evaluation.base import FeatureEvaluation, ModelEvaluation, ReadSettings
from vfm.stages.evaluation.dense import DenseEvaluation, DenseProbe, Detection, Panoptic, Segmentation
from vfm.stages.evaluation.features import AttentiveProbe, Classify, FewShot, Knn, LinearProbe
from vfm.stages.evaluation.open_segmentation import OpenSegmentation
from vfm.stages.evaluation.reports import Curves, LeftOut, SummarisedReport, Summary
from vfm.stages.evaluation.text_image import Choices, MmvpVlm, Retrieval, ZeroShot
from vfm.stages.evaluation.video import VideoEvaluation

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
    DenseProbe,
    Detection,
    Segmentation,
    Panoptic,
    OpenSegmentation,
    VideoEvaluation,
    Curves,
    Summary,
)

__all__ = [
    "EVALUATIONS", "AttentiveProbe", "Choices", "Classify", "Curves", "DenseEvaluation", "DenseProbe", "Detection",
    "FeatureEvaluation", "FewShot", "Knn", "LeftOut", "LinearProbe", "MmvpVlm", "ModelEvaluation",
    "OpenSegmentation", "Panoptic", "ReadSettings", "Retrieval", "Segmentation", "SummarisedReport", "Summary",
    "VideoEvaluation", "ZeroShot",
]  # fmt: skip
