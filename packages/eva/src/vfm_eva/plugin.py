"""The stages that this package adds to vfm."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_eva.stages import EvaClip, EvaFinetune, EvaPretrain, EvaTargets
from vfm_eva.stages_detect import STAGES as DETECTION
from vfm_eva.stages_evaluation import MaskedPatches
from vfm_eva.stages_segment import STAGES as SEGMENTATION
from vfm_eva.stages_video import EvaVideo


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Return pre-training, its targets, its evaluation, fine-tuning, and dense tasks."""
    return [EvaTargets, EvaPretrain, EvaClip, EvaFinetune, EvaVideo, MaskedPatches, *DETECTION, *SEGMENTATION]
