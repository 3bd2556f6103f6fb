"""Scattered scenes: one to six objects of different sizes at any place, the made world of detection and segmentation.

Later objects cover earlier ones. An object's mask is the visible part of its silhouette, holes included, so a ring and
a disc of one shape have the same mask.
"""

# S image size in pixels

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vfm.data.synthetic.drawing import draw_ground, draw_objects, draw_silhouette, to_pixels
from vfm.data.synthetic.sampling import combination_probabilities, sample_nuisance
from vfm.data.synthetic.scene import DIRECTED, Attribute, Nuisance, Scene
from vfm.data.synthetic.world import World

Vocabulary = Literal[12, 120, 1080]
"""Classes of an object: its shape, its colour too, or its texture and structure too (in a world with all of them)."""
MAX_OBJECTS = 6
TILT = 25.0  # degrees
SPACING = 0.85  # smallest distance of two objects, in sums of their radii; below 1 they may overlap a little
PLACE_DRAWS = 20  # after these, an object without room is left out
MIN_VISIBLE = 6  # pixels; an object with fewer is ignored


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """One object: its look as a scene of a single object, centre and radius in image widths."""

    look: Scene
    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True, slots=True)
class ScatteredScene:
    """Objects, the first one at the back, before a background."""

    objects: tuple[PlacedObject, ...]
    background: Nuisance


@dataclass(frozen=True)
class DrawnScene:
    """An image and the number of the object that each pixel shows, -1 for the ground."""

    pixels: NDArray[np.uint8]  # (S, S, 3)
    owners: NDArray[np.int8]  # (S, S)


def class_names(world: World, vocabulary: Vocabulary) -> list[str]:
    """Return the class names in the order of `label_of`: "star", "red star", "striped outline red star"."""
    if vocabulary == 12:
        return list(world.shapes)
    names = [f"{colour} {shape}" for shape, colour in world.combinations]
    if vocabulary == 120:
        return names
    return [f"{surface} {name}" for name in names for surface in _surface_names(world)]


def label_of(world: World, vocabulary: Vocabulary, look: Scene) -> int:
    """Return the class of an object."""
    if vocabulary == 12:
        return world.shapes.index(look.shape)
    label = world.label(look.shape, look.colour)
    if vocabulary == 120:
        return label
    return label * len(_surface_names(world)) + _surfaces(world).index((look.texture, look.structure))


def sample_scattered(
    world: World,
    rng: np.random.Generator,
    *,
    zipf: float = 0.0,
    max_objects: int = MAX_OBJECTS,
    scale: tuple[float, float],
) -> ScatteredScene:
    """Draw a scene. The draws do not depend on any vocabulary, so all vocabularies label the same pictures.

    Args:
        world: its shapes, colours, textures, structures and backgrounds.
        rng: random generator.
        zipf: exponent of the long tail of shapes in colours, and of textures with structures; 0: uniform.
        max_objects: largest number of objects; every number from 1 is equally likely.
        scale: smallest and largest radius, in image widths.
    """
    combinations, surfaces = world.combinations, _surfaces(world)
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
        # A fixed number of draws for each object, whether its first place is free or not.
        places = radius + (1 - 2 * radius) * rng.random((PLACE_DRAWS, 2))
        centre = next((place for place in places.tolist() if _is_free(place, radius, placed)), None)
        if centre:
            placed.append(PlacedObject(look, (centre[0], centre[1]), radius))
    return ScatteredScene(tuple(placed), sample_nuisance(world, rng))


def draw_scattered(scene: ScatteredScene, size: int) -> DrawnScene:
    """Draw a scene of S pixels."""
    channels = draw_ground(scene.background, size)
    owners = np.full((size, size), -1, dtype=np.int8)
    for number, one in enumerate(scene.objects):
        draw_objects(channels, one.look, [one.centre], one.radius)
        owners[draw_silhouette(one.look, one.centre, one.radius, size)] = number
    return DrawnScene(to_pixels(channels), owners)


def _is_free(centre: list[float], radius: float, placed: list[PlacedObject]) -> bool:
    return all(math.dist(centre, other.centre) >= SPACING * (radius + other.radius) for other in placed)


def _draw(cumulative: NDArray[np.float64], rng: np.random.Generator) -> int:
    return min(int(np.searchsorted(cumulative, rng.random(), side="right")), len(cumulative) - 1)


def _surfaces(world: World) -> list[tuple[str, str]]:
    return [(str(one), str(other)) for one in _values(world, "texture") for other in _values(world, "structure")]


def _surface_names(world: World) -> list[str]:
    return [f"{texture} {structure}" for texture, structure in _surfaces(world)]


def _values(world: World, name: Attribute) -> tuple[str | int, ...]:
    return world.values(name)
