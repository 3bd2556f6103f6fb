"""The synthetic world: images of coloured shapes with captions, classes and pairs, so that a recipe needs no download.

Its functions are pure: each sample depends on the world's configuration, a seed and the sample's number only.
"""

from vfm.data.shapes.captions import CLASS_TEMPLATES, Caption, describe, sample_caption, statement
from vfm.data.shapes.drawing import draw
from vfm.data.shapes.pairs import Pair, make_pairs, sample_pair
from vfm.data.shapes.render import RenderedSample, class_names, render_labeled, render_shard
from vfm.data.shapes.sampling import combination_probabilities, sample_scene
from vfm.data.shapes.scene import Scene
from vfm.data.shapes.world import World

__all__ = [
    "CLASS_TEMPLATES", "Caption", "Pair", "RenderedSample", "Scene", "World", "class_names",
    "combination_probabilities", "describe", "draw", "make_pairs", "render_labeled", "render_shard", "sample_caption",
    "sample_pair", "sample_scene", "statement",
]  # fmt: skip
