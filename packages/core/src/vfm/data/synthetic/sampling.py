"""Draw random scenes of a world with a long tail of shapes, attributes, and variation that captions never name."""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.data.synthetic.scene import (
    ATTRIBUTES,
    COLOURS,
    DIRECTED,
    RGB,
    SHAPES,
    Attribute,
    Colour,
    Nuisance,
    Orientation,
    PlacedObject,
    Scene,
    Shape,
    Wave,
)
from vfm.data.synthetic.world import World

SURFACE: tuple[Attribute, ...] = ("texture", "structure", "state")
"""Attributes of the surface. At most one differs from its default, because small objects would be illegible."""
NUM_WAVES = 2
CLUTTER_RADII = (0.04, 0.1)
"""Smallest and largest radius of an object of the clutter, in image widths. A small object of a scene has 0.17."""


class Stream(IntEnum):
    """Independent random streams. Captions have a separate stream, so that their fractions do not change the images."""

    POOL = 0
    CAPTIONS = 1
    CLASSES = 2
    PAIRS = 3
    VALUES = 4
    SCATTERED = 5
    FEDERATED = 6
    VIDEOS = 7
    QUESTIONS = 7


def generator(seed: int, *key: int) -> np.random.Generator:
    """Create the random generator of a stream and number, independent of all others."""
    return np.random.default_rng((seed, *key))


@cache
def combination_probabilities(num_combinations: int, zipf: float) -> NDArray[np.float64]:
    """Compute the probability of each shape and colour in the pool, proportional to k ** -zipf for the k-th rank.

    The ranks are a fixed permutation that does not depend on a seed, so that pools of different seeds have the same
    head and tail.

    Returns:
        Probabilities in the order of `World.combinations`, (num_combinations,). They sum to 1.
    """
    rank = np.random.default_rng(0).permutation(num_combinations) + 1
    weight = rank.astype(np.float64) ** -zipf
    return np.asarray(weight / weight.sum())


def class_groups(world: World) -> dict[str, list[int]]:
    """Group the classes by their frequency in a pool.

    `head`, `middle` and `tail` have a third each.
    """
    chances = combination_probabilities(len(world.combinations), world.zipf)
    thirds = np.array_split(np.argsort(-chances, kind="stable"), 3)
    names = ("head", "middle", "tail")
    return {name: sorted(map(int, third)) for name, third in zip(names, thirds, strict=True)}


@cache
def _cumulative(num_combinations: int, zipf: float) -> NDArray[np.float64]:
    return np.cumsum(combination_probabilities(num_combinations, zipf))


def sample_combination(world: World, rng: np.random.Generator) -> tuple[Shape, Colour]:
    """Draw a shape and a colour by the world's Zipf law."""
    num_combinations = len(world.shapes) * len(world.colours)
    index = int(np.searchsorted(_cumulative(num_combinations, world.zipf), rng.random(), side="right"))
    shape, colour = divmod(min(index, num_combinations - 1), len(world.colours))
    return world.shapes[shape], world.colours[colour]


def sample_scene(world: World, rng: np.random.Generator, *, combination: tuple[Shape, Colour] | None = None) -> Scene:
    """Draw a scene of the world.

    Values are uniform, with two exceptions: half of the scenes have nothing but the objects, and at most one of
    texture, structure and state differs from its default.

    Args:
        world: The world.
        rng: Random generator.
        combination: Shape and colour. Default: drawn by the world's Zipf law.
    """
    shape, colour = combination or sample_combination(world, rng)
    varying = [name for name in SURFACE if name in world.attributes]
    changed = (*varying, None)[int(rng.random() * (len(varying) + 1))]
    attributes: dict[str, Any] = {}
    # One number per attribute, whether it varies or not, so that worlds with other attributes keep the same draws.
    for name, draw in zip(ATTRIBUTES, rng.random(len(ATTRIBUTES)).tolist(), strict=True):
        values = world.values(name)
        if name in SURFACE:
            values = values[1:] if name == changed else values[:1]
        elif name == "presence":
            values = values[:1] if draw < 0.5 else values[1:] or values
            draw = 2 * draw % 1  # the rest of the number is uniform again, and chooses the value
        attributes[name] = values[int(draw * len(values))]
    if shape not in DIRECTED:
        attributes["orientation"] = None
    return Scene(shape, colour, **attributes, nuisance=sample_nuisance(world, rng))


def sample_nuisance(world: World, rng: np.random.Generator) -> Nuisance:
    """Draw jitter of position, tilt, size and colour, and a background by the world's variety."""
    jitter = rng.uniform(-1, 1, 7).tolist()
    return Nuisance(
        shift=(world.max_shift * jitter[0], world.max_shift * jitter[1]),
        angle=world.max_tilt * jitter[2],
        scale=1 + 0.06 * jitter[3],
        tint=(0.05 * jitter[4], 0.05 * jitter[5], 0.05 * jitter[6]),
        corner=int(4 * rng.random()),
        ground=_ground(world.variety, rng.uniform(-1, 1, 4).tolist()),
        waves=_waves(world.variety, rng.uniform(-1, 1, (NUM_WAVES, 6)).tolist()) if world.variety else (),
        # Drawn last, so that worlds without clutter keep their draws.
        clutter=tuple(_distractor(draws) for draws in rng.random((world.clutter, 6)).tolist()),
    )


def _distractor(draws: list[float]) -> PlacedObject:
    """Create a small object of any shape and colour anywhere in the image."""
    shape = SHAPES[int(draws[0] * len(SHAPES))]
    colour = COLOURS[int(draws[1] * len(COLOURS))]
    orientation: Orientation | None = "up" if shape in DIRECTED else None
    look = Scene(shape, colour, orientation=orientation, nuisance=Nuisance(angle=360 * draws[2]))
    return PlacedObject(look, (draws[3], draws[4]), CLUTTER_RADII[0] + draws[5] * (CLUTTER_RADII[1] - CLUTTER_RADII[0]))


def _ground(variety: float, draws: list[float]) -> RGB:
    """Choose a medium grey, on which all colours are visible, with lightness and hue varied by `variety`."""
    red, green, blue = (0.52 + variety * (0.12 * draws[0] + 0.10 * part) for part in draws[1:])
    return red, green, blue


def _waves(variety: float, draws: list[list[float]]) -> tuple[Wave, ...]:
    """Create waves of up to three cycles per image, with low amplitude, so that all colours stay visible."""
    return tuple(
        Wave(3 * x, 3 * y, phase, (0.09 * variety * red, 0.09 * variety * green, 0.09 * variety * blue))
        for x, y, phase, red, green, blue in draws
    )
