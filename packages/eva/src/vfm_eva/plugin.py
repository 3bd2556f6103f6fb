"""The stages that this package adds to vfm."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_eva.dense.detect.stages import STAGES as DETECTION
from vfm_eva.dense.segment.stages import STAGES as SEGMENTATION
from vfm_eva.finetune.stages import EvaFinetune
from vfm_eva.pretrain.held_out_stages import MaskedPatches
from vfm_eva.pretrain.stages import EvaClip, EvaPretrain
from vfm_eva.targets.stages import EvaTargets
from vfm_eva.video.stages import EvaVideo


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """List the stages for pre-training with its targets and evaluation, fine-tuning, and dense tasks."""
    return [EvaTargets, EvaPretrain, EvaClip, EvaFinetune, EvaVideo, MaskedPatches, *DETECTION, *SEGMENTATION]
