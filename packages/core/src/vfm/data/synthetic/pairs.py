"""Pairs as in MMVP: two images that differ in one attribute only, and one true statement of each.

Source: Tong et al. 2024, Eyes Wide Shut? (arXiv:2401.06209), nine patterns; without text and viewpoint, which the
synthetic world does not have, and with size and texture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vfm.data.synthetic.captions import statement
from vfm.data.synthetic.sampling import SURFACE, Stream, generator, sample_scene
from vfm.data.synthetic.scene import (
    DIRECTED,
    PATTERNS,
    VALUES,
    Pattern,
    Scene,
    Value,
)
from vfm.data.synthetic.world import World


@dataclass(frozen=True)
class Pair:
    """Two scenes and two statements: statement k is true of scene k and false of the other scene."""

    pattern: Pattern
    scenes: tuple[Scene, Scene]
    statements: tuple[str, str]


def make_pairs(world: World, seed: int, pattern: Pattern, count: int, start: int = 0) -> Iterator[Pair]:
    """Yield `count` pairs of a pattern from `start` on; each depends only on the seed, the pattern and its number."""
    place = PATTERNS.index(pattern)
    for index in range(start, start + count):
        yield sample_pair(world, generator(seed, Stream.PAIRS, place, index), pattern)


def sample_pair(world: World, rng: np.random.Generator, pattern: Pattern) -> Pair:
    """Draw two scenes that differ only in `pattern`; every shape and colour is equally likely.

    For texture, structure and state, one of the two scenes has the default value (solid, filled, whole).

    Raises:
        ValueError: the pattern does not vary in the world (`World.patterns`).
    """
    if pattern not in world.patterns:
        raise ValueError(f"{pattern!r} does not vary in this world; choose from {', '.join(world.patterns)}")
    shapes = [shape for shape in world.shapes if pattern != "orientation" or shape in DIRECTED]
    shape = shapes[int(rng.random() * len(shapes))]
    colour = world.colours[int(rng.random() * len(world.colours))]
    scene = sample_scene(world, rng, combination=(shape, colour))
    values: tuple[Value, ...] = world.colours if pattern == "colour" else world.values(pattern)
    one, other = rng.permutation(len(values))[:2].tolist()
    if pattern in SURFACE:  # two non-default values, such as stripes and dots, look alike on the smallest objects
        one, other = (0, other or one) if rng.random() < 0.5 else (other or one, 0)
    first, second = (_with(scene, pattern, values[index]) for index in (one, other))
    return Pair(pattern, (first, second), (statement(first, pattern), statement(second, pattern)))


def _with(scene: Scene, pattern: Pattern, value: Value) -> Scene:
    """Return the scene with another value; for a surface attribute, the other surface attributes become default."""
    change: dict[str, Any] = {name: VALUES[name][0] for name in SURFACE} if pattern in SURFACE else {}
    return replace(scene, **{**change, pattern: value})
