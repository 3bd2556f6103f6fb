"""The nouns of the made world: what a picture shows, apart from how it is drawn or told.

A scene is one group of equal objects. Its attributes can be told by a caption; its nuisance (where exactly, how tilted,
on which ground) is never told, and the two pictures of a pair share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Shape = Literal[
    "circle", "square", "triangle", "diamond", "star", "heart",
    "arrow", "cross", "moon", "drop", "mushroom", "hourglass",
]  # fmt: skip
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black"]
Position = Literal["centre", "left", "right", "top", "bottom"]
Orientation = Literal["up", "right", "down", "left"]
Size = Literal["big", "small"]
Texture = Literal["solid", "striped", "dotted"]
Structure = Literal["filled", "hole", "outline"]
Presence = Literal["alone", "dot", "frame"]
State = Literal["whole", "broken"]
Attribute = Literal["count", "position", "orientation", "size", "texture", "structure", "presence", "state"]
Pattern = Literal[
    "orientation", "presence", "state", "count", "position", "colour", "structure", "size", "texture"
]  # fmt: skip

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
DIRECTED: frozenset[Shape] = frozenset({"triangle", "heart", "arrow", "moon", "drop", "mushroom"})
"""Shapes that point somewhere; the others have no orientation."""
MAX_COUNT = 4

RGB = tuple[float, float, float]
Value = str | int
"""What an attribute can be: a word, or a count."""

VALUES: dict[Attribute, tuple[Value, ...]] = {
    "count": tuple(range(1, MAX_COUNT + 1)),
    "position": get_args(Position),
    "orientation": get_args(Orientation),
    "size": get_args(Size),
    "texture": get_args(Texture),
    "structure": get_args(Structure),
    "presence": get_args(Presence),
    "state": get_args(State),
}
"""The values of each attribute; the first is the ordinary one, taken where the attribute does not vary."""


@dataclass(frozen=True, slots=True)
class Wave:
    """A plane wave in the ground: cycles a picture in x and y, phase in cycles, what it adds to red, green, blue."""

    x: float
    y: float
    phase: float
    colour: RGB


@dataclass(frozen=True, slots=True)
class Nuisance:
    """What no caption tells: lengths are in picture widths, angles in degrees, colours in [0, 1]."""

    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    scale: float = 1.0
    tint: RGB = (0.0, 0.0, 0.0)
    corner: int = 0
    ground: RGB = (0.5, 0.5, 0.5)
    waves: tuple[Wave, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture of the made world: `count` equal objects, perhaps a dot or a frame beside them.

    Raises:
        ValueError: a shape without direction has an orientation, or a directed one has none.
    """

    shape: Shape
    colour: Colour
    count: int = 1
    position: Position = "centre"
    orientation: Orientation | None = None
    size: Size = "big"
    texture: Texture = "solid"
    structure: Structure = "filled"
    presence: Presence = "alone"
    state: State = "whole"
    nuisance: Nuisance = Nuisance()

    def __post_init__(self) -> None:
        if (self.shape in DIRECTED) != (self.orientation is not None):
            raise ValueError(f"a {self.shape} cannot have orientation {self.orientation!r}")
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"count is {self.count}; a scene holds 1 to {MAX_COUNT} objects")

    def value(self, name: Pattern) -> Value | None:
        """The value of one attribute (or of the colour); None for the orientation of a shape without direction."""
        value: Value | None = getattr(self, name)
        return value

    def facts(self) -> dict[str, Any]:
        """What can be told of the scene, as plain JSON values; the nuisance is left out."""
        return {name: getattr(self, name) for name in ("shape", "colour", *ATTRIBUTES)}
