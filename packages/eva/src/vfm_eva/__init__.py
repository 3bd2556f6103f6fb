"""EVA pre-training for vfm: masked feature modelling as a library, and the stages `eva.targets` and `eva.pretrain`.

Names that need torch are loaded when first used, so that a recipe can be planned without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vfm_eva.stage import EvaPretrain
from vfm_eva.targets import EvaTargets, Target

if TYPE_CHECKING:
    from vfm_eva.decoder import Decoder
    from vfm_eva.images import MakeViews
    from vfm_eva.init import init_weights
    from vfm_eva.masks import MaskedData, Masks
    from vfm_eva.pca import Pca
    from vfm_eva.task import EvaTask
    from vfm_eva.teacher import StoredTargets, Teacher

_HOMES = {
    "Decoder": "decoder",
    "EvaTask": "task",
    "MakeViews": "images",
    "MaskedData": "masks",
    "Masks": "masks",
    "Pca": "pca",
    "StoredTargets": "teacher",
    "Teacher": "teacher",
    "init_weights": "init",
}

__all__ = [
    "Decoder", "EvaPretrain", "EvaTargets", "EvaTask", "MakeViews", "MaskedData", "Masks", "Pca", "StoredTargets",
    "Target", "Teacher", "init_weights",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
