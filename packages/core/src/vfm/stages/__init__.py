"""Configurations of core's own stages, registered through the same hook as every plugin's.

They are light: what a stage does is in the module that its `work` names, and is imported when the stage runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from vfm.hookspecs import hookimpl
from vfm.stage import Stage
from vfm.stages import annotated, data, labeled, models, shapes, videos
from vfm.stages.evaluation import EVALUATIONS


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Return core's stage types: data, the synthetic shapes, pretrained models and evaluations."""
    own = (data, labeled, annotated, videos, shapes, models)
    return [*(stage for module in own for stage in module.STAGES), *EVALUATIONS]
