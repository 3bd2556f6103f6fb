"""What this package brings to vfm."""

from __future__ import annotations

from collections.abc import Iterable

import vfm
from vfm_eva.finetune import EvaFinetune
from vfm_eva.stage import EvaPretrain
from vfm_eva.targets import EvaTargets


@vfm.hookimpl
def vfm_stages() -> Iterable[type[vfm.Stage]]:
    """EVA pre-training, its targets computed beforehand, and the fine-tuning of what comes of it."""
    return [EvaTargets, EvaPretrain, EvaFinetune]
