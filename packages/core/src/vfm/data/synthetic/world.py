"""Configuration of the synthetic world."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated

from pydantic import Field, model_validator

from vfm.base import Config
from vfm.data.synthetic.languages import Language
from vfm.data.synthetic.scene import (
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

Fraction = Annotated[float, Field(ge=0, le=1)]


class World(Config):
    """Distribution of the synthetic images and captions. The same world and seed give the same bytes."""

    image_size: int = Field(64, ge=16, le=1024, description="pixels along a side")
    shapes: tuple[Shape, ...] = Field(SHAPES, min_length=1, description="shapes of the objects")
    colours: tuple[Colour, ...] = Field(COLOURS, min_length=1, description="colours of the objects")
    attributes: tuple[Attribute, ...] = Field(
        ATTRIBUTES, description="attributes that vary. The others have their default value and are never named"
    )
    max_count: int = Field(3, ge=1, le=MAX_COUNT, description="largest number of objects in a scene")
    zipf: float = Field(1.0, ge=0, description="exponent of the long tail of shapes and colours (0: uniform)")
    variety: Fraction = Field(0.5, description="variation of the background (0: the same plain grey in every image)")
    clutter: int = Field(0, ge=0, le=50, description="small objects behind the scene, which no caption names")
    max_tilt: float = Field(7.0, ge=0, le=180, description="largest tilt of the objects in degrees")
    max_shift: float = Field(0.015, ge=0, le=0.2, description="largest shift of the objects in image widths")
    attribute_share: Fraction = Field(
        0.3, description="fraction of true captions that name an attribute, drawn independently for each attribute"
    )
    attribute_noise: Fraction = Field(0.1, description="fraction of the named attributes with a wrong value")
    attribute_share_of: Mapping[Attribute, Fraction] = Field({}, description="attribute_share of single attributes")
    attribute_noise_of: Mapping[Attribute, Fraction] = Field({}, description="attribute_noise of single attributes")
    noise_share: Fraction = Field(0.2, description="fraction of captions that are unrelated to the image")
    foreign_share: Fraction = Field(0.05, description="fraction of captions in another language than their label")
    languages: tuple[Language, ...] = Field(("en",), min_length=1, description="labels of the captions of an image")
    captions_per_image: int = Field(1, ge=1, le=100, description="captions per language")

    @model_validator(mode="after")
    def _consistent(self) -> World:
        for name in ("shapes", "colours", "attributes", "languages"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must not repeat a value, got {', '.join(values)}")
        if self.noise_share + self.foreign_share > 1:
            raise ValueError(
                f"noise_share + foreign_share must be at most 1, got {self.noise_share} + {self.foreign_share}"
            )
        return self

    def values(self, attribute: Attribute) -> tuple[Value, ...]:
        """List the values of an attribute in this world."""
        if attribute not in self.attributes:
            return VALUES[attribute][:1]
        if attribute == "count":
            return VALUES[attribute][: self.max_count]
        return VALUES[attribute]

    @property
    def combinations(self) -> list[tuple[Shape, Colour]]:
        """Every shape in every colour. These are the zero-shot classes, in order."""
        return list(product(self.shapes, self.colours))

    def label(self, shape: Shape, colour: Colour) -> int:
        """Find the class of a shape and a colour: their index in `combinations`."""
        return self.shapes.index(shape) * len(self.colours) + self.colours.index(colour)

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Patterns that vary in this world: attributes in which the images of a pair can differ."""
        possible: set[Pattern] = {name for name in self.attributes if len(self.values(name)) > 1}
        if not DIRECTED.intersection(self.shapes):
            possible.discard("orientation")
        if len(self.colours) > 1:
            possible.add("colour")
        return tuple(pattern for pattern in PATTERNS if pattern in possible)
