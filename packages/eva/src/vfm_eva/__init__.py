"""EVA pre-training for vfm: masked feature modelling as a library, and the stages `eva.targets` and `eva.pretrain`.

Names that need torch are loaded when first used, so that a recipe can be planned without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vfm_eva.stage import EvaPretrain
from vfm_eva.targets import EvaTargets, Target

if TYPE_CHECKING:
    from vfm_eva.images import MakeMasked
    from vfm_eva.task import EvaTask, Teacher

_HOMES = {"MakeMasked": "images", "EvaTask": "task", "Teacher": "task"}

__all__ = ["EvaPretrain", "EvaTargets", "EvaTask", "MakeMasked", "Target", "Teacher"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
