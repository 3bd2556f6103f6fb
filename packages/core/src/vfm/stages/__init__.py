"""Configurations of core's own stages, registered through the same hook as every plugin's.

They are light: what a stage does is in the module that its `work` names, and is imported when the stage runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from vfm.eval.curves_stage import Curves
from vfm.eval.feature_stages import AttentiveProbe, Classify, Knn, LinearProbe
from vfm.eval.few_shot_stage import FewShot
from vfm.eval.stages import Choices, MmvpVlm, Retrieval, ZeroShot
from vfm.eval.summary_stage import Summary
from vfm.hookspecs import hookimpl
from vfm.models import stages as models
from vfm.stage import Stage
from vfm.stages import data, labeled, shapes

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
    return [*data.STAGES, *labeled.STAGES, *shapes.STAGES, *models.STAGES, *EVALUATIONS]
