"""The stages that core itself brings, through the same hook as every plugin."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.data import stages as data
from vfm.data.shapes import stages as shapes
from vfm.eval.feature_stages import Knn, LinearProbe
from vfm.eval.stages import Choices, MmvpVlm, Retrieval, ZeroShot
from vfm.hookspecs import hookimpl
from vfm.models import stages as models
from vfm.stage import Stage

EVALUATIONS = (ZeroShot, Retrieval, LinearProbe, Knn, MmvpVlm, Choices)


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Data of the user, the made world, pretrained models, and the ruler."""
    return [*data.STAGES, *shapes.STAGES, *models.STAGES, *EVALUATIONS]
