"""The stages that this package adds to vfm."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_eva.stages import EvaFinetune, EvaPretrain, EvaTargets
from vfm_eva.stages_evaluation import MaskedPatches


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Return pre-training, its targets, its evaluation, and fine-tuning."""
    return [EvaTargets, EvaPretrain, EvaFinetune, MaskedPatches]
