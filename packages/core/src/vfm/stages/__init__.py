"""Configurations of core's own stages, registered through the same hook as every plugin's.

They are light: what a stage does is in the module that its `work` names, and is imported when the stage runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from vfm.data import labeled_stages, stages
from vfm.data.shapes import stages as shapes
from vfm.data.tag_stage import CaptionLabels
from vfm.eval.curves_stage import Curves
from vfm.eval.feature_stages import AttentiveProbe, Classify, Knn, LinearProbe
from vfm.eval.few_shot_stage import FewShot
from vfm.eval.stages import Choices, MmvpVlm, Retrieval, ZeroShot
from vfm.eval.summary_stage import Summary
from vfm.hookspecs import hookimpl
from vfm.models import stages as models
from vfm.stage import Stage

EVALUATIONS: tuple[type[Stage], ...] = (
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


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Return core's stage types: data, the synthetic shapes, pretrained models and evaluations."""
    return [*stages.STAGES, *labeled_stages.STAGES, CaptionLabels, *shapes.STAGES, *models.STAGES, *EVALUATIONS]
