"""Pairs as in MMVP. Two images differ in only one attribute, with one true statement for each.

Source: Tong et al. 2024, Eyes Wide Shut? (arXiv:2401.06209), nine patterns, with size and texture instead of text and
viewpoint, which the synthetic world does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vfm.data.synthetic.captions import statement
from vfm.data.synthetic.sampling import SURFACE, Stream, generator, sample_scene
from vfm.data.synthetic.scene import DIRECTED, PATTERNS, VALUES, Pattern, Scene, Value
from vfm.data.synthetic.world import World


@dataclass(frozen=True)
class Pair:
    """Two scenes and two statements. Statement k is true for scene k, and false for the other scene."""

    pattern: Pattern
    scenes: tuple[Scene, Scene]
    statements: tuple[str, str]


def make_pairs(world: World, seed: int, pattern: Pattern, count: int, start: int = 0) -> Iterator[Pair]:
    """Yield pairs that differ in a pattern. Each depends only on the seed, the pattern and its number.

    Args:
        world: Distribution of the scenes.
        seed: Seed of the pairs.
        pattern: Attribute in which the scenes of a pair differ.
        count: Number of pairs.
        start: Number of the first pair.
    """
    pattern_number = PATTERNS.index(pattern)
    for index in range(start, start + count):
        yield sample_pair(world, generator(seed, Stream.PAIRS, pattern_number, index), pattern)


def sample_pair(world: World, rng: np.random.Generator, pattern: Pattern) -> Pair:
    """Draw two scenes that differ only in `pattern`.

    Every shape and colour is equally likely. For texture, structure and state, one of the two scenes has the default
    value (solid, filled, whole).

    Args:
        world: Distribution of the scenes.
        rng: Random generator of the draws.
        pattern: Attribute in which the scenes differ.

    Raises:
        ValueError: If the pattern does not vary in the world (`World.patterns`).
    """
    if pattern not in world.patterns:
        raise ValueError(f"{pattern!r} does not vary in this world; choose from {', '.join(world.patterns)}")
    shapes = [shape for shape in world.shapes if pattern != "orientation" or shape in DIRECTED]
    shape = shapes[int(rng.random() * len(shapes))]
    colour = world.colours[int(rng.random() * len(world.colours))]
    scene = sample_scene(world, rng, combination=(shape, colour))
    values: tuple[Value, ...] = world.colours if pattern == "colour" else world.values(pattern)
    i, j = rng.permutation(len(values))[:2].tolist()
    if pattern in SURFACE:  # two non-default values, such as stripes and dots, look alike on the smallest objects
        changed = j or i
        i, j = (0, changed) if rng.random() < 0.5 else (changed, 0)
    first = _with(scene, pattern, values[i])
    second = _with(scene, pattern, values[j])
    return Pair(pattern, (first, second), (statement(first, pattern), statement(second, pattern)))


def _with(scene: Scene, pattern: Pattern, value: Value) -> Scene:
    """Change a value of a scene. For a surface attribute, the other surface attributes become default."""
    changes: dict[str, Any] = {}
    if pattern in SURFACE:
        changes = {name: VALUES[name][0] for name in SURFACE}
    changes[pattern] = value
    return replace(scene, **changes)
