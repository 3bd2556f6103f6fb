"""Questions as in MMVP about the synthetic world. The same question about two images has different answers.

The two images differ only in the attribute of the question, and question and options are equal, so that a model that
ignores the image gets no pair right. Source: Tong et al. 2024, Eyes Wide Shut? (arXiv:2401.06209).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vfm.data.choices.questions import Question, write_questions
from vfm.data.synthetic.captions import NUMBERS
from vfm.data.synthetic.drawing import draw
from vfm.data.synthetic.pairs import Pair, sample_pair
from vfm.data.synthetic.render import encode
from vfm.data.synthetic.sampling import Stream, generator
from vfm.data.synthetic.scene import PATTERNS, Pattern, Value
from vfm.data.synthetic.stages import ShapesQuestions
from vfm.interfaces import Context, ImagesPanel, PanelImage, QuestionDataset

ASKED: dict[Pattern, str] = {
    "orientation": "which way does it point",
    "presence": "what is around it",
    "state": "is it whole",
    "count": "how many are there",
    "position": "where is it",
    "colour": "what colour is it",
    "structure": "what is its inside",
    "size": "how big is it",
    "texture": "what is its texture",
}
PAIRS_SHOWN = 2  # pairs per family in the panel


def make_questions(config: ShapesQuestions, ctx: Context) -> QuestionDataset:
    """Draw the images of each pair and its question, family by family."""
    families = config.families or config.world.patterns
    images: list[bytes] = []
    questions: list[Question] = []
    for family in families:
        for number, (pair, options) in enumerate(draw_questions(config, family)):
            values = [answer(scene.value(family)) for scene in pair.scenes]
            for side, (scene, value) in enumerate(zip(pair.scenes, values, strict=True)):
                questions.append(
                    Question(
                        key=f"{family}-{number:05d}-{side}",
                        image=len(images),
                        text=f"{ASKED[family]} ? {options[0]} or {options[1]} ?",
                        options=options,
                        answer=options.index(value),
                        family=family,
                        pair=len(questions) // 2,
                    )
                )
                images.append(encode(draw(scene, config.world.image_size)))
    _add_panel(ctx, images, questions)
    return write_questions(ctx.directory, images, questions)


def draw_questions(config: ShapesQuestions, family: Pattern) -> Iterator[tuple[Pair, list[str]]]:
    """Yield pairs of scenes with the two options in random order. Each depends only on seed, split and number."""
    split = ("train", "test").index(config.split)
    family_number = PATTERNS.index(family)
    for index in range(config.pairs_per_family):
        rng = generator(config.seed, Stream.QUESTIONS, split, family_number, index)
        pair = sample_pair(config.world, rng, family)
        yield pair, _shuffled([answer(scene.value(family)) for scene in pair.scenes], rng)


def answer(value: Value | None) -> str:
    """Write a value as a word."""
    assert value is not None
    return NUMBERS.get(value, str(value))


def _shuffled(options: list[str], rng: np.random.Generator) -> list[str]:
    return options if rng.random() < 0.5 else options[::-1]


def _add_panel(ctx: Context, images: list[bytes], questions: list[Question]) -> None:
    """Show the first pairs of each family."""
    folder = ctx.directory / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for question in questions:
        if int(question.key.split("-")[1]) < PAIRS_SHOWN:
            file = f"panels/{question.key}.jpg"
            (ctx.directory / file).write_bytes(images[question.image])
            shown.append(PanelImage(file=file, caption=f"{question.text} {question.options[question.answer]}"))
    ctx.panel(ImagesPanel(title="Questions", note="Pairs with one question.", order=30, pictures=shown))
