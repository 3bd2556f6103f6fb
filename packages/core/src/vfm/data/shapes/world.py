"""The whole configuration of the made world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from vfm.config import Config
from vfm.data.shapes.languages import Language
from vfm.data.shapes.scene import (
    ATTRIBUTES,
    COLOURS,
    DIRECTED,
    MAX_COUNT,
    PATTERNS,
    SHAPES,
    VALUES,
    Attribute,
    Colour,
    Pattern,
    Shape,
    Value,
)

Share = Annotated[float, Field(ge=0, le=1)]


class World(Config):
    """What pictures and captions of the made world look like. The same world and seed make the same bytes."""

    image_size: int = Field(64, ge=16, le=1024, description="pixels along a side")
    shapes: tuple[Shape, ...] = Field(SHAPES, min_length=1, description="what shapes there are")
    colours: tuple[Colour, ...] = Field(COLOURS, min_length=1, description="what colours there are")
    attributes: tuple[Attribute, ...] = Field(
        ATTRIBUTES, description="what varies from scene to scene; the others keep their ordinary value and are not told"
    )
    max_count: int = Field(3, ge=1, le=MAX_COUNT, description="objects in a scene at most")
    zipf: float = Field(1.0, ge=0, description="the k-th commonest shape and colour come as k ** -zipf; 0 is uniform")
    variety: Share = Field(0.5, description="how varied the background is; 0 is the same plain grey in every picture")
    attribute_share: Share = Field(
        0.3, description="share of captions that tell an attribute, drawn for each by itself"
    )
    attribute_noise: Share = Field(0.1, description="share of the told attributes that are told wrongly")
    attribute_share_of: Mapping[Attribute, Share] = Field({}, description="other shares for single attributes")
    attribute_noise_of: Mapping[Attribute, Share] = Field({}, description="other noise for single attributes")
    noise_share: Share = Field(0.2, description="captions that have nothing to do with the picture, as alt-texts do")
    foreign_share: Share = Field(0.05, description="captions in another language than their label says")
    languages: tuple[Language, ...] = Field(("en",), min_length=1, description="labels of the captions of an image")
    captions_per_image: int = Field(1, ge=1, le=100, description="captions of each language")

    @model_validator(mode="after")
    def _consistent(self) -> World:
        for name in ("shapes", "colours", "attributes", "languages"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names something twice: {', '.join(values)}")
        if self.noise_share + self.foreign_share > 1:
            raise ValueError(f"noise_share {self.noise_share} + foreign_share {self.foreign_share} is more than 1")
        return self

    def values(self, attribute: Attribute) -> tuple[Value, ...]:
        """The values that an attribute takes in this world."""
        if attribute not in self.attributes:
            return VALUES[attribute][:1]
        return VALUES[attribute][: self.max_count] if attribute == "count" else VALUES[attribute]

    @property
    def combinations(self) -> list[tuple[Shape, Colour]]:
        """Every shape in every colour: the classes of the zero-shot set, in their order."""
        return [(shape, colour) for shape in self.shapes for colour in self.colours]

    def label(self, shape: Shape, colour: Colour) -> int:
        """The class of a shape and a colour: their place in `combinations`."""
        return self.shapes.index(shape) * len(self.colours) + self.colours.index(colour)

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """What two pictures of a pair can differ in."""
        possible: set[Pattern] = {name for name in self.attributes if len(self.values(name)) > 1}
        if not DIRECTED.intersection(self.shapes):
            possible.discard("orientation")
        if len(self.colours) > 1:
            possible.add("colour")
        return tuple(pattern for pattern in PATTERNS if pattern in possible)
