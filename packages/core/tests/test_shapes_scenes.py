"""Scenes, captions and pairs of the synthetic world: statements are true, with the configured frequencies."""

import math
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from vfm.data.synthetic.captions import (
    ADJECTIVES,
    NUMBERS,
    PHRASES,
    describe,
    sample_caption,
    true_caption,
)
from vfm.data.synthetic.languages import LEXICONS
from vfm.data.synthetic.pairs import Pair, sample_pair
from vfm.data.synthetic.sampling import SURFACE, combination_probabilities, generator, sample_combination, sample_scene
from vfm.data.synthetic.scene import (
    ATTRIBUTES,
    COLOURS,
    DIRECTED,
    PATTERNS,
    SHAPES,
    VALUES,
    Attribute,
    Scene,
    Value,
)
from vfm.data.synthetic.world import World

TRUE_WORLD = World(attribute_noise=0, noise_share=0, foreign_share=0)


def within_four_sigma(hits: int, n: int, share: float) -> bool:
    return abs(hits - n * share) <= 4 * math.sqrt(n * share * (1 - share)) + 1e-9


def words_of(attribute: Attribute, value: Value) -> str:
    """Return the words that name a value, spelled out independently of `describe`."""
    if attribute == "count":
        return NUMBERS[value]
    return PHRASES.get(attribute, {}).get(value) or ADJECTIVES.get(value, str(value))


def says(text: str, words: str) -> bool:
    return f" {words} " in f" {text.replace(',', ' ')} "


@given(zipf=st.floats(0, 3), count=st.integers(2, 200))
def test_combinations_follow_the_zipf_law(zipf: float, count: int) -> None:
    probabilities = np.sort(combination_probabilities(count, zipf))[::-1]
    assert probabilities.sum() == pytest.approx(1)
    np.testing.assert_allclose(probabilities / probabilities[0], np.arange(1, count + 1.0) ** -zipf, rtol=1e-9)


def test_sampled_combinations_match_their_probability() -> None:
    world, n = World(), 20_000
    rng = generator(0, 9)
    counts = Counter(sample_combination(world, rng) for _ in range(n))
    expected = n * combination_probabilities(len(world.combinations), world.zipf)
    observed = np.array([counts[combination] for combination in world.combinations])
    chi_squared = float(((observed - expected) ** 2 / expected).sum())
    degrees = len(expected) - 1
    assert chi_squared < degrees + 5 * math.sqrt(2 * degrees)
    assert expected.max() / expected.min() == pytest.approx(len(expected))


def test_at_most_one_surface_attribute_is_not_default_and_every_value_occurs() -> None:
    world = World(max_count=4)
    scenes = [sample_scene(world, generator(3, 0, index)) for index in range(2000)]
    for scene in scenes:
        assert sum(scene.value(name) != VALUES[name][0] for name in SURFACE) <= 1
    for name in ATTRIBUTES:
        assert {scene.value(name) for scene in scenes} - {None} == set(VALUES[name])


def test_attributes_that_do_not_vary_are_default_and_never_named() -> None:
    world = World(attributes=("count", "state"), max_count=2, attribute_share=1.0, noise_share=0, foreign_share=0)
    for index in range(300):
        rng = generator(0, 0, index)
        scene = sample_scene(world, rng)
        assert scene.count <= 2
        assert (scene.position, scene.size, scene.texture, scene.presence) == ("centre", "big", "solid", "alone")
        assert set(sample_caption(world, scene, rng).named) == {"count", "state"}
    assert set(world.patterns) == {"count", "state", "colour"}


@given(seed=st.integers(0, 10_000))
def test_true_captions_name_colour_shape_and_the_true_attributes(seed: int) -> None:
    rng = generator(seed)
    scene = sample_scene(TRUE_WORLD, rng)
    caption = true_caption(TRUE_WORLD, scene, rng)
    assert scene.colour in caption.text
    assert scene.shape in caption.text
    for name, value in caption.named.items():
        assert value == scene.value(name)
        assert says(caption.text, words_of(name, value))


@given(shape=st.sampled_from(SHAPES), colour=st.sampled_from(COLOURS), data=st.data())
def test_descriptions_contain_only_the_named_attributes(shape: str, colour: str, data: st.DataObject) -> None:
    names = [name for name in ATTRIBUTES if name != "orientation" or shape in DIRECTED]
    named = {name: data.draw(st.sampled_from(VALUES[name])) for name in data.draw(st.sets(st.sampled_from(names)))}
    text = describe(shape, colour, named)
    for name in ATTRIBUTES:
        for value in VALUES[name]:
            assert says(text, words_of(name, value)) == (named.get(name) == value), (name, value, text)
    assert text.split()[0] in {"a", "an", *NUMBERS.values()}
    assert (text.split()[0] == "an") == (text.split()[0] in {"a", "an"} and text.split()[1][0] in "aeiou")


def test_fractions_of_named_and_wrong_attributes() -> None:
    world = World(
        attribute_share=0.3, attribute_noise=0.1, noise_share=0, foreign_share=0,
        attribute_share_of={"count": 0.8, "state": 0.0}, attribute_noise_of={"position": 0.5},
    )  # fmt: skip
    n, named, possible, wrong = 4000, Counter[str](), Counter[str](), Counter[str]()
    for index in range(n):
        rng = generator(7, index)
        scene = sample_scene(world, rng)
        caption = sample_caption(world, scene, rng)
        possible.update(name for name in ATTRIBUTES if scene.value(name) is not None)
        named.update(caption.named.keys())
        wrong.update(name for name, value in caption.named.items() if value != scene.value(name))
    for name in ATTRIBUTES:
        share = {"count": 0.8, "state": 0.0}.get(name, 0.3)
        assert within_four_sigma(named[name], possible[name], share), name
        assert within_four_sigma(wrong[name], named[name], 0.5 if name == "position" else 0.1), name


def test_fractions_of_noise_and_foreign_captions() -> None:
    world, n = World(noise_share=0.25, foreign_share=0.1), 4000
    scene = Scene("star", "red")
    rng = generator(1)
    captions = [sample_caption(world, scene, rng) for _ in range(n)]
    kinds = Counter(caption.kind for caption in captions)
    noise = kinds["file_name"] + kinds["boilerplate"] + kinds["unrelated"]
    assert min(kinds.values()) > 0
    assert within_four_sigma(noise, n, 0.25)
    assert within_four_sigma(kinds["foreign"], n, 0.1)
    for caption in captions:
        named = "red star" in caption.text or caption.named
        assert bool(named) == (caption.kind == "true"), caption
        if caption.kind == "foreign":
            assert caption.language != "en"
            assert LEXICONS[caption.language].name("star", "red") in caption.text


def test_adjectives_agree_with_their_nouns() -> None:
    names = {language: lexicon.name("star", "green") for language, lexicon in LEXICONS.items()}
    assert names == {"de": "grüner Stern", "fr": "étoile verte", "es": "estrella verde", "ja": "緑の星"}
    assert LEXICONS["de"].name("heart", "red") == "rotes Herz"
    assert LEXICONS["es"].name("hourglass", "white") == "reloj de arena blanco"


def pairs_of(world: World, pattern: str, count: int) -> list[Pair]:
    return [sample_pair(world, generator(5, index), pattern) for index in range(count)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_images_of_a_pair_differ_only_in_the_pattern(pattern: str) -> None:
    for pair in pairs_of(World(max_count=4), pattern, 60):
        first, second = pair.scenes
        differing = [field.name for field in fields(Scene) if getattr(first, field.name) != getattr(second, field.name)]
        assert differing == [pattern]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_statements_of_a_pair_are_true_of_their_image_and_false_of_the_other(pattern: str) -> None:
    for pair in pairs_of(World(max_count=4), pattern, 60):
        for own, other in ((0, 1), (1, 0)):
            text, scene, rival = pair.statements[own], pair.scenes[own], pair.scenes[other]
            assert scene.shape in text
            if pattern == "colour":
                assert scene.colour in text.split()
                assert rival.colour not in text.split()
            else:
                assert says(text, words_of(pattern, scene.value(pattern)))
                assert not says(text, words_of(pattern, rival.value(pattern)))


def test_neither_side_of_a_pair_is_favoured() -> None:
    pairs = pairs_of(World(), "state", 400)
    assert within_four_sigma(sum(pair.scenes[0].state == "whole" for pair in pairs), 400, 0.5)


def test_pattern_that_does_not_vary_is_refused() -> None:
    world = World(shapes=("circle", "square"))
    assert "orientation" not in world.patterns
    with pytest.raises(ValueError, match="'orientation' does not vary in this world; choose from presence, state"):
        sample_pair(world, generator(0), "orientation")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shapes": ["star", "star"]}, "shapes must not repeat a value"),
        (
            {"noise_share": 0.7, "foreign_share": 0.5},
            "noise_share \\+ foreign_share must be at most 1, got 0.7 \\+ 0.5",
        ),
        ({"attribute_share_of": {"shape": 0.1}}, "attribute_share_of.shape"),
        ({"attribute_share": 1.5}, "less than or equal to 1"),
        ({"colors": ["red"]}, "colors"),
    ],
)
def test_impossible_worlds_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        World.model_validate(settings)


def test_scenes_refuse_an_invisible_orientation() -> None:
    with pytest.raises(ValueError, match="a circle cannot have orientation 'up'"):
        Scene("circle", "red", orientation="up")
    with pytest.raises(ValueError, match="a heart cannot have orientation None"):
        Scene("heart", "red")
