"""The made world: pictures of coloured shapes with captions, classes and pairs, so that a recipe runs with no download.

numpy and Pillow only, pure functions of a configuration and a seed.
"""

from vfm.data.shapes.captions import CLASS_TEMPLATES, Caption, describe, sample_caption, statement
from vfm.data.shapes.draw import draw
from vfm.data.shapes.pairs import Pair, sample_pair
from vfm.data.shapes.render import Sample, class_names, make_pairs, render_labeled, render_shard, write_tar
from vfm.data.shapes.sampling import combination_probabilities, sample_scene
from vfm.data.shapes.scene import Scene
from vfm.data.shapes.world import World

__all__ = [
    "CLASS_TEMPLATES", "Caption", "Pair", "Sample", "Scene", "World", "class_names", "combination_probabilities",
    "describe", "draw", "make_pairs", "render_labeled", "render_shard", "sample_caption", "sample_pair", "sample_scene",
    "statement", "write_tar",
]  # fmt: skip
