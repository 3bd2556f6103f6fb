"""Models as the field keeps them: timm's vision encoders and open_clip's CLIP models, built, loaded, saved and read.

The names below are imported when first used, since the stages of this package must be known without torch.
`import vfm.models.presets` registers the small architectures with timm and open_clip; building or loading does so too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfm.models.clip import ClipModel, build_clip, load_clip, save_clip
    from vfm.models.preprocess import Preprocess
    from vfm.models.vision import build_vision, load_vision, save_vision, vision_preprocess

_HOMES = {
    "clip": ("ClipModel", "build_clip", "load_clip", "save_clip"),
    "preprocess": ("Preprocess",),
    "vision": ("build_vision", "load_vision", "save_vision", "vision_preprocess"),
}

__all__ = [
    "ClipModel", "Preprocess", "build_clip", "build_vision", "load_clip", "load_vision", "save_clip", "save_vision",
    "vision_preprocess",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
