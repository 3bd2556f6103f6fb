"""Questions about images: on disk and back, pairs that fit each other, and those of the synthetic world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from vfm.base import UserError
from vfm.data import Question, Questions, decode_image, pairs_of, write_questions
from vfm.data.synthetic.questions import ASKED, draw_questions
from vfm.data.synthetic.scene import PATTERNS
from vfm.data.synthetic.stages import ShapesQuestions
from vfm.data.synthetic.world import World
from vfm.interfaces import Context, QuestionDataset

WORLD = World(image_size=16, variety=0.0)


def stage(**changes: object) -> ShapesQuestions:
    given = {"name": "asked", "world": WORLD, "pairs_per_family": 3, **changes}
    return ShapesQuestions.model_validate(given)


def made(folder: Path, **changes: object) -> QuestionDataset:
    dataset = stage(**changes).run(Context("asked", folder, folder / "work", {}))
    assert isinstance(dataset, QuestionDataset)
    return dataset


def test_questions_come_back_with_their_images(tmp_path: Path) -> None:
    images = [str(number).encode() for number in range(600)]  # more than one batch of the file
    asked = [Question(f"q{n}", n, "what ?", ["yes", "no"], n % 2, "parity", n // 2) for n in range(600)]
    dataset = write_questions(tmp_path, images, asked)
    assert (dataset.num_questions, dataset.num_images, dataset.num_pairs, dataset.families) == (
        600,
        600,
        300,
        ["parity"],
    )
    found = Questions(QuestionDataset.load(tmp_path))
    assert found.items == asked
    assert [found.image(number) for number in (599, 0, 256)] == [images[599], images[0], images[256]]


def test_each_family_has_pairs_that_only_sight_can_answer(tmp_path: Path) -> None:
    found = Questions(made(tmp_path))
    assert set(found.dataset.families) == set(WORLD.patterns)
    for first, second in pairs_of(found.items):
        one, other = found.items[first], found.items[second]
        assert one.text == other.text
        assert one.answer == 1 - other.answer
        assert set(one.options) <= set(one.text.split())
        pixels = [np.asarray(decode_image(found.image(each.image), "")) for each in (one, other)]
        assert not np.array_equal(*pixels)
    # The order of the options is drawn, so that no place is right more often than the other.
    assert {question.answer for question in found.items[::2]} == {0, 1}


def test_the_answer_is_the_truth_of_the_scene() -> None:
    config = stage(pairs_per_family=20)
    for family in WORLD.patterns:
        for pair, options in draw_questions(config, family):
            for scene in pair.scenes:
                value = scene.value(family)
                word = {1: "one", 2: "two", 3: "three"}.get(value, value)  # type: ignore[call-overload]
                assert word in options


def test_training_and_test_have_other_pairs_and_a_seed_repeats_them(tmp_path: Path) -> None:
    sets = [Questions(made(tmp_path / name, split=name)) for name in ("train", "test")]
    assert all(one.image(each) != other.image(each) for one, other in [sets] for each in range(6))
    again = Questions(made(tmp_path / "again", split="train"))
    assert again.items == sets[0].items
    assert [again.image(number) for number in range(9)] == [sets[0].image(number) for number in range(9)]


def test_every_pattern_has_a_question() -> None:
    assert set(ASKED) == set(PATTERNS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("a", ["x", "y"], 0)], "expected two questions, got 1"),
        ([("a", ["x", "y"], 0), ("a", ["x", "y"], 0)], "expected different answers, got 'x' twice"),
    ],
)
def test_pairs_that_do_not_fit_are_one_line(given: list[tuple[str, list[str], int]], message: str) -> None:
    asked = [Question(f"q{n}", 0, text, options, answer, pair=0) for n, (text, options, answer) in enumerate(given)]
    with pytest.raises(ValueError, match=message):
        pairs_of(asked)


@pytest.mark.parametrize(("options", "answer"), [([], 0), (["x", "x"], 0), (["x", " "], 0), (["x", "y"], 2)])
def test_options_that_cannot_be_told_apart_are_refused(options: list[str], answer: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        Question("q", 0, "what ?", options, answer)


def test_damage_and_wrong_settings_are_one_line(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    with pytest.raises(ValueError, match="expected one of 1 images"):
        write_questions(tmp_path / "wrong", [b"x"], [Question("q", 1, "", ["a"], 0)])
    (tmp_path / "images.arrow").write_bytes(b"ARROW1 damaged")
    with pytest.raises(UserError, match=r"images\.arrow: not readable as images"):
        Questions(dataset).image(0)
    with pytest.raises(ValidationError, match="does not vary"):
        stage(world=World(attributes=(), colours=("red", "blue")), families=("count",))
