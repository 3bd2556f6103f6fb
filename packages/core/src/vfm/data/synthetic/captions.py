"""Web-like captions of an image. Some describe part of the scene, possibly wrongly, others do not describe it at all.

A true caption always names colour and shape, and each other attribute in a fraction of cases that the world sets. The
article "a" is not a count: like class names, a caption without the count says "a red star" even for three stars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from vfm.data.synthetic.languages import LANGUAGES, LEXICONS, Language
from vfm.data.synthetic.scene import ATTRIBUTES, Attribute, Colour, Pattern, Scene, Shape, Value
from vfm.data.synthetic.world import World

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
"""Values that are phrases after the noun. All others are adjectives before it, unchanged or as in ADJECTIVES."""
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
    """A caption and its content. `named` maps attributes to the values in the text, right or wrong."""

    text: str
    kind: CaptionKind
    language: Language
    named: Mapping[Attribute, Value] = field(default_factory=dict)


def describe(shape: Shape, colour: Colour, named: Mapping[Attribute, Value]) -> str:
    """Describe an object in English, such as "two big red stars pointing up on the left".

    Args:
        shape: Its shape.
        colour: Its colour.
        named: Attributes to name.
    """
    words = []
    for name in BEFORE:
        if name in named and named[name] not in PHRASES.get(name, {}):
            words.append(_adjective(named[name]))
    words += [colour, shape]
    number = named.get("count")
    if number is None:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    else:
        words.insert(0, NUMBERS[number])
        if number != 1:
            words[-1] += "es" if shape.endswith("s") else "s"
    for name in AFTER:
        if name in named and named[name] in PHRASES[name]:
            words.append(PHRASES[name][named[name]])
    return " ".join(words)


def _adjective(value: Value) -> str:
    return ADJECTIVES.get(value, str(value))


def statement(scene: Scene, pattern: Pattern) -> str:
    """Write a true statement of an attribute of a scene, or of its colour, without "a photo of"."""
    if pattern == "colour":
        return describe(scene.shape, scene.colour, {})
    value = scene.value(pattern)
    assert value is not None, f"a {scene.shape} has no {pattern}"
    return describe(scene.shape, scene.colour, {pattern: value})


def sample_caption(world: World, scene: Scene, rng: np.random.Generator, *, language: Language = "en") -> Caption:
    """Draw a web-like caption of a scene.

    It is noise, in another language, or a true caption, by the world's fractions.

    Args:
        world: Distribution of the captions.
        scene: The scene.
        rng: Random generator of the draws.
        language: Language of a true caption.
    """
    draw = rng.random()
    if draw < world.noise_share:
        return _noise(rng, language)
    if draw < world.noise_share + world.foreign_share:
        others = [other for other in LANGUAGES if other != language]
        return true_caption(world, scene, rng, language=_pick(rng, others), kind="foreign")
    return true_caption(world, scene, rng, language=language)


def true_caption(
    world: World, scene: Scene, rng: np.random.Generator, *, language: Language = "en", kind: CaptionKind = "true"
) -> Caption:
    """Draw a caption that names colour and shape, and in English also attributes, by the world's fractions.

    Args:
        world: Distribution of the captions.
        scene: The scene.
        rng: Random generator of the draws.
        language: Language of the text. It may differ from the caption's label.
        kind: Label of the caption.
    """
    if language != "en":
        lexicon = LEXICONS[language]
        return Caption(_pick(rng, lexicon.templates).format(lexicon.name(scene.shape, scene.colour)), kind, language)
    named = _sample_attributes(world, scene, rng)
    text = _pick(rng, TEMPLATES).format(describe(scene.shape, scene.colour, named))
    return Caption(text, kind, language, named)


def _sample_attributes(world: World, scene: Scene, rng: np.random.Generator) -> dict[Attribute, Value]:
    """Draw the attributes that a caption names, each with its true value or (noise) any other."""
    named: dict[Attribute, Value] = {}
    # One draw for all attributes, so that the random stream does not depend on which of them vary in the world.
    chances = rng.random((len(ATTRIBUTES), 3)).tolist()
    for name, (share, noise, choice) in zip(ATTRIBUTES, chances, strict=True):
        value = scene.value(name)
        if value is None or name not in world.attributes:
            continue
        if share < world.attribute_share_of.get(name, world.attribute_share):
            others = [other for other in world.values(name) if other != value]
            wrong = noise < world.attribute_noise_of.get(name, world.attribute_noise) and others
            named[name] = others[int(choice * len(others))] if wrong else value
    return named


def _noise(rng: np.random.Generator, language: Language) -> Caption:
    number = int(100_000 * rng.random())
    page = 1 + int(90 * rng.random())
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
