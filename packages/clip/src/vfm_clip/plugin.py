"""What this package brings to vfm."""

from __future__ import annotations

from collections.abc import Iterable

import vfm
from vfm_clip.stage import ClipTrain


@vfm.hookimpl
def vfm_stages() -> Iterable[type[vfm.Stage]]:
    """CLIP training."""
    return [ClipTrain]
