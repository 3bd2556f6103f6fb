"""The made world: pictures of coloured shapes with captions, classes and pairs, so that a recipe runs with no download.

Pure functions of a configuration and a seed, with numpy and Pillow alone. Names are loaded when first used, so a recipe
can be planned without numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfm.data.shapes.captions import CLASS_TEMPLATES, Caption, describe, sample_caption, statement
    from vfm.data.shapes.drawing import draw
    from vfm.data.shapes.pairs import Pair, make_pairs, sample_pair
    from vfm.data.shapes.render import MadeSample, class_names, render_labeled, render_shard
    from vfm.data.shapes.sampling import combination_probabilities, sample_scene
    from vfm.data.shapes.scene import Scene
    from vfm.data.shapes.world import World

_HOMES = {
    "captions": ("CLASS_TEMPLATES", "Caption", "describe", "sample_caption", "statement"),
    "drawing": ("draw",),
    "pairs": ("Pair", "make_pairs", "sample_pair"),
    "render": ("MadeSample", "class_names", "render_labeled", "render_shard"),
    "sampling": ("combination_probabilities", "sample_scene"),
    "scene": ("Scene",),
    "world": ("World",),
}

__all__ = [
    "CLASS_TEMPLATES", "Caption", "MadeSample", "Pair", "Scene", "World", "class_names", "combination_probabilities",
    "describe", "draw", "make_pairs", "render_labeled", "render_shard", "sample_caption", "sample_pair", "sample_scene",
    "statement",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
