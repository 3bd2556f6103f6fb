"""POPE's questions from annotated pictures, and questions from MMVP's folder and JSON lines; scores by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import diva_toy
from vfm.data import Questions
from vfm.data.synthetic.stages import ShapesScenes
from vfm.data.synthetic.world import World
from vfm.plugin import AnnotatedImages, Preflight, UserError
from vfm_diva.mllm.pope import ObjectQuestion, Split, draw_pope, question_about
from vfm_diva.mllm.question_files import read_rows
from vfm_diva.mllm.scores import (
    chosen,
    f1,
    pair_scores,
    precision,
    recall,
    yes_no_scores,
)
from vfm_diva.mllm.stages import MllmPope, MllmQuestions

NAMES = ["cat", "dog", "owl", "cow", "hen", "pig", "ant", "bee"]
Pictures = st.lists(st.lists(st.sampled_from(NAMES), unique=True, max_size=8), min_size=1, max_size=12)


@settings(max_examples=60)
@given(Pictures, st.sampled_from(["random", "popular", "adversarial"]), st.integers(1, 3), st.integers(0, 5))
def test_questions_are_balanced_and_absent_objects_are_absent(
    objects: list[list[str]], split: Split, per_image: int, seed: int
) -> None:
    def drawn() -> list[ObjectQuestion]:
        generator = np.random.default_rng(seed)
        return draw_pope(objects, split, num_images=5, per_image=per_image, generator=generator)

    asked = drawn()
    assert asked == drawn()
    images = list(dict.fromkeys(one.image for one in asked))
    assert len(images) <= 5
    for image in images:
        own = [one for one in asked if one.image == image]
        assert [one.present for one in own] == [True, False] * per_image
        assert [one.name for one in own if one.present] == objects[image][:per_image]
        assert not {one.name for one in own if not one.present} & set(objects[image])
        assert len({one.name for one in own}) == 2 * per_image


def test_popular_and_adversarial_objects_are_those_of_the_counts() -> None:
    objects = [["cat", "dog"], ["cat", "owl"], ["dog", "cow"], ["dog", "cow"], ["dog", "owl"], ["hen", "cow"]]

    def absent(split: Split) -> dict[int, list[str]]:
        asked = draw_pope(objects, split, num_images=6, per_image=2, generator=np.random.default_rng(0))
        found: dict[int, list[str]] = {}
        for one in asked:
            if not one.present:
                found.setdefault(one.image, []).append(one.name)
        return found

    # Frequencies: dog 4, cow 3, cat 2, owl 2, hen 1. Picture 0 has cat and dog.
    assert absent("popular")[0] == ["cow", "owl"]
    # Beside a cat: dog once (present), owl once. Beside a dog: cow twice.
    assert absent("adversarial")[0] == ["owl", "cow"]


def test_pope_of_made_scenes_is_about_their_objects(tmp_path: Path) -> None:
    stage = ShapesScenes(name="scenes", world=World(image_size=32), num_samples=30, max_objects=4)
    scenes: AnnotatedImages = diva_toy.run(stage, tmp_path / "scenes")
    config = MllmPope(name="asked", data="scenes", num_images=6, per_image=2, split="adversarial")
    found = Questions(diva_toy.run(config, tmp_path / "asked", scenes=scenes))
    assert (len(found), found.dataset.num_images, found.dataset.families) == (24, 6, ["adversarial"])
    assert [item.options[item.answer] for item in found.items] == ["yes", "no"] * 12
    assert question_about("owl") == "Is there an owl in the image?"
    assert question_about("image") == "Is there an image in the image?"
    many = config.model_copy(update={"per_image": 9})
    with pytest.raises(UserError, match="no image has 9 kinds of objects"):
        diva_toy.run(many, tmp_path / "many", scenes=scenes)
    federated = AnnotatedImages.create(scenes.path, **{**scenes.model_dump(), "federated": True})
    with pytest.raises(UserError, match="only some classes"):
        diva_toy.run(config, tmp_path / "federated", scenes=federated)


def picture(file: Path, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file)


def make_mmvp(folder: Path, count: int = 300) -> None:
    rows = ["Index,Question,Options,Correct Answer"]
    for number in range(1, count + 1):
        picture(folder / "MMVP Images" / f"{number}.jpg", number)
        rows.append(f'{number},"Is it open, or not?",(a) Open (b) Closed,{"(a)" if number % 2 else "(b)"}')
    (folder / "Questions.csv").write_text("\n".join(rows) + "\n")


def questions(path: Path, folder: Path, **changes: Any) -> Questions:
    return Questions(diva_toy.run(MllmQuestions(name="asked", path=str(path), **changes), folder))


def test_mmvp_is_read_with_both_sets_of_answers(tmp_path: Path) -> None:
    make_mmvp(tmp_path / "mmvp")
    corrected = questions(tmp_path / "mmvp", tmp_path / "one")
    original = questions(tmp_path / "mmvp", tmp_path / "other", labels="original")
    assert (len(corrected), corrected.dataset.num_pairs) == (300, 150)
    assert corrected.items[0].text == "Is it open, or not? (a) Open (b) Closed"
    differing = [
        one.key for one, other in zip(corrected.items, original.items, strict=True) if one.answer != other.answer
    ]
    assert differing == ["99", "100", "279", "280"]
    assert [corrected.items[n - 1].answer for n in (99, 100, 279, 280)] == [1, 0, 1, 0]


def test_a_table_that_is_not_csv_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "Questions.csv").write_bytes(b"Index,Question,Options,Correct Answer\r1,what?,(a) red,(a)\r")
    with pytest.raises(UserError, match=r"Questions\.csv: not readable as CSV: "):
        questions(tmp_path, tmp_path / "out")


def test_lines_become_questions_and_a_missing_image_takes_its_pair_along(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    lines = [
        {"image": "0.png", "question": "what ?", "options": ["red", "blue"], "answer": "blue", "pair": 0},
        {"image": "1.png", "question": "what ?", "options": ["red", "blue"], "answer": 0, "pair": 0},
        {"image": "2.png", "question": "what ?", "options": ["red", "blue"], "answer": 0, "pair": 1},
        {"image": "none.png", "question": "what ?", "options": ["red", "blue"], "answer": 1, "pair": 1},
        {"image": "2.png", "answer": "a picture of noise"},
    ]
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n" + json.dumps({"image": "0.png", "answer": 3}))
    found = questions(file, tmp_path / "made", max_bad_fraction=0.9)
    assert [(item.key, item.answer, item.pair) for item in found.items] == [("1", 1, 0), ("2", 0, 0), ("5", 0, -1)]
    assert found.items[2].options == ["a picture of noise"]
    assert found.image(found.items[1].image) == (tmp_path / "1.png").read_bytes()
    with pytest.raises(
        UserError,
        match=r"4 of 7 questions cannot be used .*broken_json.*missing_image.*missing_partner.*unreadable_row",
    ):
        questions(file, tmp_path / "strict")
    with pytest.raises(UserError, match=r"expected a folder with Questions\.csv"):
        questions(tmp_path, tmp_path / "wrong")
    file.write_text("{broken\n")
    with pytest.raises(UserError, match=r"^no usable question in .*asked\.jsonl: .*line 1 \(broken_json\)"):
        MllmQuestions(name="asked", path=str(file)).preflight(Preflight({}, {}))


@pytest.mark.parametrize("change", [{"answer": 0.7}, {"answer": True}, {"pair": 0.7}, {"pair": 5}, {"answer": None}])
def test_a_question_that_is_left_out_is_counted(tmp_path: Path, change: dict[str, Any]) -> None:
    picture(tmp_path / "0.png")
    line = {"image": "0.png", "question": "what ?", "options": ["red", "blue"], "answer": 1}
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, [*3 * [line], {**line, **change}])))
    assert len(questions(file, tmp_path / "made", max_bad_fraction=0.5)) == 3
    reason = "missing_partner" if change == {"pair": 5} else "unreadable_row"
    with pytest.raises(UserError, match=f"1 of 4 questions cannot be used .*{reason}.*"):
        questions(file, tmp_path / "strict")


def test_scores_by_hand() -> None:
    correct, two = np.array([True, True, True, False, False, False]), np.full(6, 2)
    pairs = [(0, 1), (2, 3), (4, 5)]
    found = {score.metric: score for score in pair_scores(correct, pairs, two, ["a", "a", "a", "a", "b", "b"])}
    assert {name: score.value for name, score in found.items()} == {
        "pair_accuracy": pytest.approx(1 / 3),
        "pair_accuracy/a": 0.5,
        "pair_accuracy/b": 0.0,
    }
    assert found["pair_accuracy"].chance == 0.25
    assert chosen([-1.0, -2.0], 0)
    assert not chosen([-1.0, -1.0], 0)  # a tie chooses nothing
    counts = [3, 1, 2, 4]  # true yes, false yes, false no, true no
    assert (precision(counts), recall(counts)) == (0.75, 0.6)
    assert f1(counts) == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert f1([0, 0, 5, 5]) == 0  # never yes, where LLaVA's script divides by zero
    always = yes_no_scores(np.ones(12, bool), np.tile([True, False], 6), np.repeat([0, 1], 6))
    assert [score.value for score in always] == [0.5, 1.0, pytest.approx(2 / 3), 1.0]
    assert always[2].interval() == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_a_line_may_have_earlier_turns(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    line = {"image": "red.png", "question": "And the shape?", "answer": "a square"}
    lines = [{**line, "history": history} for history in (["What colour?", "red"], ["What colour?"], "red", [1, 2])]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bad: list[str] = []
    config = MllmQuestions(name="q", path=str(tmp_path / "lines.jsonl"))
    rows = list(read_rows(config, lambda reason, where: bad.append(where[-6:])))
    assert [row.question.turns() for row in rows] == [["What colour?", "red", "And the shape?", "a square"]]
    assert bad == ["line 2", "line 3", "line 4"]


def test_conversations_of_llava_become_questions_with_their_earlier_turns(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    turns = ["<image>\nWhat colour?", "red", "And the shape?", "a square"]
    told = [{"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(turns)]
    records = [{"id": "7", "image": "red.png", "conversations": told}, {"id": "8", "conversations": told}, {"id": "9"}]
    records += [{"id": "10", "image": "red.png", "conversations": told[:3]}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/llava.json").write_text(json.dumps(records))
    bad: list[str] = []
    config = MllmQuestions(name="q", path=str(tmp_path / "data/llava.json"), image_root=str(tmp_path))
    rows = list(read_rows(config, lambda reason, where: bad.append(reason)))
    assert [(row.image, row.question.turns()) for row in rows] == [
        (tmp_path / "red.png", ["What colour?", "red", "And the shape?", "a square"])
    ]
    assert bad == ["no_image", "unreadable_row", "unanswered_question"]
