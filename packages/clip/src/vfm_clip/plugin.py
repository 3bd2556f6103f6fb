"""The stages that this package adds to vfm."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_clip.stages import ClipTrain


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Register the stage of CLIP training."""
    return [ClipTrain]
