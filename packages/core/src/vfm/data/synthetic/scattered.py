"""Scattered scenes for detection and segmentation: one to six objects of different sizes at any position.

Later objects cover earlier objects. An object's mask is the visible part of its silhouette, including holes, so a ring
and a disc of the same shape have the same mask.
"""

# S image size in pixels

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vfm.data.synthetic.drawing import draw_ground, draw_objects, draw_silhouette, to_pixels
from vfm.data.synthetic.sampling import combination_probabilities, sample_nuisance
from vfm.data.synthetic.scene import DIRECTED, Nuisance, PlacedObject, Scene
from vfm.data.synthetic.world import World

Vocabulary = Literal[12, 120, 1080]
"""Number of classes: by shape, by shape and colour, or also by texture and structure (in a world with all of them)."""
MAX_OBJECTS = 6
TILT = 25.0  # degrees
SPACING = 0.85  # smallest distance of two objects, in sums of their radii. Below 1, they may overlap a little
PLACE_DRAWS = 20  # draws of a position before an object without room is left out
MIN_VISIBLE = 6  # pixels. Objects with fewer visible pixels are ignored


@dataclass(frozen=True, slots=True)
class ScatteredScene:
    """Objects in front of a background, with the first object at the back."""

    objects: tuple[PlacedObject, ...]
    background: Nuisance


@dataclass(frozen=True)
class DrawnScene:
    """An image, and the number of the object that each pixel shows.

    The ground has -1.
    """

    pixels: NDArray[np.uint8]  # (S, S, 3)
    owners: NDArray[np.int8]  # (S, S)


def class_names(world: World, vocabulary: Vocabulary) -> list[str]:
    """List the class names in the order of `label_of`.

    Examples are "star", "red star" and "striped outline red star".
    """
    if vocabulary == 12:
        return list(world.shapes)
    names = [f"{colour} {shape}" for shape, colour in world.combinations]
    if vocabulary == 120:
        return names
    surfaces = list(map(" ".join, _surfaces(world)))
    return [f"{surface} {name}" for name, surface in product(names, surfaces)]


def label_of(world: World, vocabulary: Vocabulary, look: Scene) -> int:
    """Find the class of an object."""
    if vocabulary == 12:
        return world.shapes.index(look.shape)
    label = world.label(look.shape, look.colour)
    if vocabulary == 120:
        return label
    surfaces = _surfaces(world)
    return label * len(surfaces) + surfaces.index((look.texture, look.structure))


def sample_scattered(
    world: World,
    rng: np.random.Generator,
    *,
    zipf: float = 0.0,
    max_objects: int = MAX_OBJECTS,
    scale: tuple[float, float],
) -> ScatteredScene:
    """Draw a scene. The draws do not depend on a vocabulary, so all vocabularies label the same images.

    Args:
        world: World with shapes, colours, textures, structures and backgrounds.
        rng: Random generator.
        zipf: Exponent of the long tail of shapes with colours, and of textures with structures. 0: uniform.
        max_objects: Largest number of objects. Every number from 1 on is equally likely.
        scale: Smallest and largest radius, in image widths.
    """
    combinations = world.combinations
    surfaces = _surfaces(world)
    chances = np.cumsum(combination_probabilities(len(combinations), zipf))
    looks = np.cumsum(combination_probabilities(len(surfaces), zipf))
    placed: list[PlacedObject] = []
    for _ in range(1 + int(rng.random() * max_objects)):
        shape, colour = combinations[_draw(chances, rng)]
        texture, structure = surfaces[_draw(looks, rng)]
        tilt, *tint = rng.uniform(-1, 1, 4).tolist()
        radius = scale[0] + (scale[1] - scale[0]) * float(rng.random())
        nuisance = Nuisance(angle=TILT * tilt, tint=(0.05 * tint[0], 0.05 * tint[1], 0.05 * tint[2]))
        look = Scene(
            shape,
            colour,
            orientation="up" if shape in DIRECTED else None,
            texture=texture,  # type: ignore[arg-type]
            structure=structure,  # type: ignore[arg-type]
            nuisance=nuisance,
        )
        # A fixed number of draws for each object, whether its first position is free or not.
        candidates = radius + (1 - 2 * radius) * rng.random((PLACE_DRAWS, 2))
        for x, y in candidates.tolist():
            if _is_free((x, y), radius, placed):
                placed.append(PlacedObject(look, (x, y), radius))
                break
    return ScatteredScene(tuple(placed), sample_nuisance(world, rng))


def draw_scattered(scene: ScatteredScene, size: int) -> DrawnScene:
    """Draw a scene of S pixels."""
    channels = draw_ground(scene.background, size)
    owners = np.full((size, size), -1, dtype=np.int8)
    for number, placed in enumerate(scene.objects):
        draw_objects(channels, placed.look, [placed.centre], placed.radius)
        owners[draw_silhouette(placed.look, placed.centre, placed.radius, size)] = number
    return DrawnScene(to_pixels(channels), owners)


def _is_free(centre: tuple[float, float], radius: float, placed: list[PlacedObject]) -> bool:
    return all(math.dist(centre, other.centre) >= SPACING * (radius + other.radius) for other in placed)


def _draw(cumulative: NDArray[np.float64], rng: np.random.Generator) -> int:
    return min(int(np.searchsorted(cumulative, rng.random(), side="right")), len(cumulative) - 1)


def _surfaces(world: World) -> list[tuple[str, str]]:
    pairs = product(world.values("texture"), world.values("structure"))
    return [(str(texture), str(structure)) for texture, structure in pairs]
