"""What the web says of a picture: captions that tell part of the scene, perhaps wrongly, and captions that tell none.

A true caption always names colour and shape, and each other attribute in a share of cases that the world sets. The
article "a" is not a count: a caption that does not tell the count says "a red star" of three stars too, as labels do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from vfm.data.shapes.languages import LANGUAGES, LEXICONS, Language
from vfm.data.shapes.scene import ATTRIBUTES, Attribute, Colour, Pattern, Scene, Shape, Value
from vfm.data.shapes.world import World

NUMBERS: dict[Value, str] = {1: "one", 2: "two", 3: "three", 4: "four"}
PHRASES: dict[Attribute, dict[Value, str]] = {
    "structure": {"hole": "with a hole"},
    "orientation": {way: f"pointing {way}" for way in ("up", "right", "down", "left")},
    "position": {
        "centre": "in the centre", "left": "on the left", "right": "on the right",
        "top": "at the top", "bottom": "at the bottom",
    },
    "presence": {"alone": "alone", "dot": "with a dot", "frame": "in a frame"},
}  # fmt: skip
"""Values told by words after the noun; all others stand before it, as they are or as ADJECTIVES says."""
ADJECTIVES: dict[Value, str] = {"outline": "outlined"}
BEFORE: tuple[Attribute, ...] = ("size", "state", "texture", "structure")
AFTER: tuple[Attribute, ...] = ("structure", "orientation", "position", "presence")

TEMPLATES = (
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "{}, drawing",
    "image: {}",
    "this is {}",
    "{} on a background",
)
CLASS_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a {}.", "a {}, drawing", "image: a {}")

FILE_NAMES = ("IMG_{n:04d}.jpg", "DSC{n:05d}.JPG", "image{n}.png", "screenshot {n}", "untitled-{n}.gif", "P10{n:05d}")
BOILERPLATE = (
    "click to enlarge", "free shipping on all orders", "add to cart", "product image {n}", "home page logo",
    "no description available", "view larger image", "sale! up to {p} % off", "thumbnail", "photo gallery page {p}",
)  # fmt: skip
PLACES = ("the old harbour", "our garden", "the city hall", "a mountain road", "the beach", "grandma's kitchen")
EVENTS = ("sunset over {}", "summer holidays at {}", "breakfast at {}", "rain and wind near {}", "people walking by {}")

T = TypeVar("T")
CaptionKind = Literal["true", "file_name", "boilerplate", "unrelated", "foreign"]


@dataclass(frozen=True)
class Caption:
    """A caption and what it says: `told` maps attributes to the values named, right or wrong."""

    text: str
    kind: CaptionKind
    language: Language
    told: Mapping[Attribute, Value] = field(default_factory=dict)


def describe(shape: Shape, colour: Colour, told: Mapping[Attribute, Value]) -> str:
    """English for a shape, its colour and the attributes in `told`: "two big red stars pointing up on the left"."""
    words = [_adjective(told[name]) for name in BEFORE if name in told and told[name] not in PHRASES.get(name, {})]
    words += [colour, shape]
    number = told.get("count")
    if number is None:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    else:
        words.insert(0, NUMBERS[number])
        words[-1] += "" if number == 1 else "es" if shape.endswith("s") else "s"
    words += [PHRASES[name][told[name]] for name in AFTER if name in told and told[name] in PHRASES[name]]
    return " ".join(words)


def _adjective(value: Value) -> str:
    return ADJECTIVES.get(value, str(value))


def statement(scene: Scene, pattern: Pattern) -> str:
    """A true sentence about one attribute of a scene (or about its colour), without the "a photo of"."""
    if pattern == "colour":
        return describe(scene.shape, scene.colour, {})
    value = scene.value(pattern)
    assert value is not None, f"a {scene.shape} has no {pattern}"
    return describe(scene.shape, scene.colour, {pattern: value})


def sample_caption(world: World, scene: Scene, rng: np.random.Generator, *, language: Language = "en") -> Caption:
    """A caption of the scene as the web would have it: noise, another language, or true in the world's measure."""
    place = rng.random()
    if place < world.noise_share:
        return _noise(rng, language)
    if place < world.noise_share + world.foreign_share:
        others = [other for other in LANGUAGES if other != language]
        return true_caption(world, scene, rng, language=_pick(rng, others), kind="foreign")
    return true_caption(world, scene, rng, language=language)


def true_caption(
    world: World, scene: Scene, rng: np.random.Generator, *, language: Language = "en", kind: CaptionKind = "true"
) -> Caption:
    """A caption that names colour and shape; in English also attributes, by the world's shares.

    `language` is the language written in, whatever the label of the caption.
    """
    if language != "en":
        lexicon = LEXICONS[language]
        return Caption(_pick(rng, lexicon.templates).format(lexicon.name(scene.shape, scene.colour)), kind, language)
    told = _tell(world, scene, rng)
    text = _pick(rng, TEMPLATES).format(describe(scene.shape, scene.colour, told))
    return Caption(text, kind, language, told)


def _tell(world: World, scene: Scene, rng: np.random.Generator) -> dict[Attribute, Value]:
    """Which attributes a caption tells, and as what: the true value, or (noise) any other."""
    told: dict[Attribute, Value] = {}
    chances = rng.random((len(ATTRIBUTES), 3)).tolist()
    for name, (share, noise, choice) in zip(ATTRIBUTES, chances, strict=True):
        value = scene.value(name)
        if value is None or name not in world.attributes:
            continue
        if share < world.attribute_share_of.get(name, world.attribute_share):
            others = [other for other in world.values(name) if other != value]
            wrong = noise < world.attribute_noise_of.get(name, world.attribute_noise) and others
            told[name] = others[int(choice * len(others))] if wrong else value
    return told


def _noise(rng: np.random.Generator, language: Language) -> Caption:
    number, page = int(100_000 * rng.random()), 1 + int(90 * rng.random())
    kinds: tuple[CaptionKind, ...] = ("file_name", "boilerplate", "unrelated")
    kind = _pick(rng, kinds)
    if kind == "file_name":
        text = _pick(rng, FILE_NAMES).format(n=number)
    elif kind == "boilerplate":
        text = _pick(rng, BOILERPLATE).format(n=number, p=page)
    else:
        text = _pick(rng, EVENTS).format(_pick(rng, PLACES))
    return Caption(text, kind, language)


def _pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.random() * len(values))]
