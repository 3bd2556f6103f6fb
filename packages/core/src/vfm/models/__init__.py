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
    "ClipModel": "clip",
    "build_clip": "clip",
    "load_clip": "clip",
    "save_clip": "clip",
    "Preprocess": "preprocess",
    "build_vision": "vision",
    "load_vision": "vision",
    "save_vision": "vision",
    "vision_preprocess": "vision",
}

__all__ = [
    "ClipModel",
    "Preprocess",
    "build_clip",
    "build_vision",
    "load_clip",
    "load_vision",
    "save_clip",
    "save_vision",
    "vision_preprocess",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
