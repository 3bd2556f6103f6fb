"""The content of a synthetic image, without drawing and captions.

A scene is a group of equal objects. Captions can name its attributes, but never its nuisance (exact position, tilt,
background), which the two images of a pair share.
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
"""Shapes with a direction. Other shapes have no orientation."""
MAX_COUNT = 4

RGB = tuple[float, float, float]
Value = str | int
"""Value of an attribute: a word, or a count."""

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
"""Values of each attribute. The first is the default, which is used if the attribute does not vary in the world."""


@dataclass(frozen=True, slots=True)
class Wave:
    """A plane wave in the background.

    It has cycles per image in x and y, a phase in cycles, and an amplitude in red, green and blue.
    """

    x: float
    y: float
    phase: float
    colour: RGB


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """An object, whose look is a scene of a single object, with centre and radius in image widths."""

    look: Scene
    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True, slots=True)
class Nuisance:
    """Variation that no caption names.

    Lengths are in image widths, angles in degrees, and colours in [0, 1].
    """

    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    scale: float = 1.0
    tint: RGB = (0.0, 0.0, 0.0)
    corner: int = 0
    ground: RGB = (0.5, 0.5, 0.5)
    waves: tuple[Wave, ...] = ()
    clutter: tuple[PlacedObject, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """Content of an image, with `count` equal objects and possibly a dot or a frame.

    Raises:
        ValueError: If a shape without direction has an orientation, a directed shape has none, or the count is out of
            range.
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
            raise ValueError(f"count must be from 1 to {MAX_COUNT}, got {self.count}")

    def value(self, name: Pattern) -> Value | None:
        """Get the value of an attribute, or the colour.

        A shape without direction has no orientation (None).
        """
        value: Value | None = getattr(self, name)
        return value

    def facts(self) -> dict[str, Any]:
        """Collect everything that captions can name as plain JSON values, without the nuisance."""
        return {name: getattr(self, name) for name in ("shape", "colour", *ATTRIBUTES)}
