"""Pairs as in MMVP: two pictures that differ in one attribute alone, and one true statement of each.

Source: Tong et al. 2024, Eyes Wide Shut? (arXiv:2401.06209), whose nine patterns this follows; without text and
viewpoint, which the made world does not have, and with size and texture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vfm.data.shapes.captions import statement
from vfm.data.shapes.sampling import SURFACE, Stream, generator, sample_scene
from vfm.data.shapes.scene import DIRECTED, PATTERNS, VALUES, Pattern, Scene, Value
from vfm.data.shapes.world import World


@dataclass(frozen=True)
class Pair:
    """Statement k is true of scene k and false of the other one."""

    pattern: Pattern
    scenes: tuple[Scene, Scene]
    statements: tuple[str, str]


def make_pairs(world: World, seed: int, pattern: Pattern, count: int) -> Iterator[Pair]:
    """Pairs 0 to `count` of a pattern; each depends on the seed, the pattern and its number alone."""
    place = PATTERNS.index(pattern)
    for index in range(count):
        yield sample_pair(world, generator(seed, Stream.PAIRS, place, index), pattern)


def sample_pair(world: World, rng: np.random.Generator, pattern: Pattern) -> Pair:
    """Two scenes of the world that differ in `pattern` alone; every shape and colour is equally likely.

    A difference in texture, structure or state is one from the ordinary (solid, filled, whole).

    Raises:
        ValueError: the world cannot show this difference (`World.patterns`).
    """
    if pattern not in world.patterns:
        raise ValueError(f"the world has no pairs that differ in {pattern}; it has {', '.join(world.patterns)}")
    shapes = [shape for shape in world.shapes if pattern != "orientation" or shape in DIRECTED]
    shape = shapes[int(rng.random() * len(shapes))]
    colour = world.colours[int(rng.random() * len(world.colours))]
    scene = sample_scene(world, rng, combination=(shape, colour))
    values: tuple[Value, ...] = world.colours if pattern == "colour" else world.values(pattern)
    one, other = rng.permutation(len(values))[:2].tolist()
    if pattern in SURFACE:  # two oddities, such as stripes and dots, cannot be told apart on the smallest objects
        one, other = (0, other or one) if rng.random() < 0.5 else (other or one, 0)
    first, second = (_with(scene, pattern, values[index]) for index in (one, other))
    return Pair(pattern, (first, second), (statement(first, pattern), statement(second, pattern)))


def _with(scene: Scene, pattern: Pattern, value: Value) -> Scene:
    """The scene with another value; where that is of the surface, the rest of the surface is ordinary."""
    change: dict[str, Any] = {name: VALUES[name][0] for name in SURFACE} if pattern in SURFACE else {}
    return replace(scene, **{**change, pattern: value})
