"""The stages that this package adds to vfm."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_eva.stages import EvaFinetune, EvaPretrain, EvaTargets
from vfm_eva.stages_evaluation import MaskedPatches
from vfm_eva.stages_segment import STAGES as SEGMENTATION


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Return pre-training, its targets, its evaluation, fine-tuning, and dense tasks."""
    return [EvaTargets, EvaPretrain, EvaFinetune, MaskedPatches, *SEGMENTATION]
