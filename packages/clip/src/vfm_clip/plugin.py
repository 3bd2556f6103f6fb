"""The stages that this package adds to vfm."""

from __future__ import annotations

from collections.abc import Mapping

from vfm.plugin import hookimpl


@hookimpl
def vfm_stages() -> Mapping[str, str]:
    """Register the stage of CLIP training."""
    return {"clip.train": "vfm_clip.stages:ClipTrain"}
