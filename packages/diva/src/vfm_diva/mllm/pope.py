"""Stage `mllm.pope`: write POPE's yes-or-no questions about the objects of annotated images.

Source: Li et al. 2023, Evaluating object hallucination in large vision-language models (arXiv:2305.10355), section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from typing import Literal

import numpy as np

from vfm.data import BadSample, Question, write_questions
from vfm.data.annotated import AnnotatedSource
from vfm.plugin import Context, ImagesPanel, PanelImage, QuestionDataset, ReadSettings, UserError
from vfm_diva.mllm.checks import check_exhaustive
from vfm_diva.mllm.stages import MllmPope

Split = Literal["random", "popular", "adversarial"]
OPTIONS = ["yes", "no"]
SHOWN = 8  # images of the panel


@dataclass(frozen=True)
class ObjectQuestion:
    """Question whether an object is in an image.

    It has the number of the image, the name of the object, and the answer.
    """

    image: int
    name: str
    present: bool


def make_pope(config: MllmPope, ctx: Context) -> QuestionDataset:
    """Draw images with enough objects, ask about them, and copy them."""
    data = ctx.load(config.data)
    check_exhaustive(data, config.data)
    source = AnnotatedSource(data)
    names = data.class_names
    objects = []
    for number in range(len(source)):
        # A question is about a kind of object, so several objects of a kind count once.
        distinct_names = dict.fromkeys(names[label] for label in source.objects(number).labels)
        objects.append(list(distinct_names))
    readable = _readable(config, ctx, source, objects)
    drawn = draw_pope(
        [objects[number] for number in readable],
        config.split,
        num_images=config.num_images,
        per_image=config.per_image,
        generator=np.random.default_rng(config.seed),
    )
    if not drawn:
        raise UserError(
            f"{config.data}: no image has {config.per_image} kinds of objects, and lacks as many that others have"
        )
    # Only images with questions are stored, so they get new numbers.
    new_numbers: dict[int, int] = {}
    questions = []
    for number, question in enumerate(drawn):
        key = source.keys[readable[question.image]]
        questions.append(
            Question(
                key=f"{key}-{number}",
                image=new_numbers.setdefault(question.image, len(new_numbers)),
                text=question_about(question.name),
                options=OPTIONS,
                answer=0 if question.present else 1,
                family=config.split,
            )
        )
    if len(new_numbers) < config.num_images:
        ctx.warn(f"{len(new_numbers)} images have enough objects, {config.num_images} were asked for")
    images = [source.source[readable[image]].image for image in new_numbers]
    _add_panel(ctx, images, questions)
    return write_questions(ctx.directory, images, questions)


def draw_pope(
    objects: Sequence[Sequence[str]],
    split: Split,
    *,
    num_images: int,
    per_image: int,
    generator: np.random.Generator,
) -> list[ObjectQuestion]:
    """Draw POPE's questions about objects in images.

    Each image gets `per_image` questions with the answer yes and as many with no, in turn. A question with the answer
    yes names one of the first `per_image` objects of the image. The next one, with the answer no, names an object that
    is neither in the image nor named before. `random` takes any. `popular` takes the object in most of the drawn
    images. `adversarial` takes the object that is most often in a drawn image with the object just named. Equal counts
    are decided by the order of the names. If all counts are 0, any object is taken.

    Args:
        objects: Names in each image, without repetition, in order.
        split: Rule for choosing absent objects.
        num_images: Images to draw among images with enough objects and enough absent ones. There may be fewer.
        per_image: Questions of either answer.
        generator: Random generator of the draws.

    Returns:
        The questions, by image.
    """
    known = sorted(set(chain.from_iterable(objects)))
    usable = [number for number, names in enumerate(objects) if per_image <= len(names) <= len(known) - per_image]
    drawn = sorted(generator.permutation(usable)[:num_images].tolist())
    frequency: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for number in drawn:
        frequency.update(objects[number])
        together.update(permutations(objects[number], 2))
    questions = []
    for number in drawn:
        absent = [name for name in known if name not in objects[number]]
        for present in objects[number][:per_image]:
            # `random` keeps equal counts, so any absent object may be chosen.
            counts = dict.fromkeys(absent, 0)
            for name in absent:
                if split == "popular":
                    counts[name] = frequency[name]
                elif split == "adversarial":
                    counts[name] = together[present, name]
            likeliest = max(counts, key=lambda name: counts[name])
            if counts[likeliest]:
                chosen = likeliest
            else:
                chosen = absent[int(generator.integers(len(absent)))]
            # An object occurs in one question of an image at most.
            absent.remove(chosen)
            questions += [ObjectQuestion(number, present, True), ObjectQuestion(number, chosen, False)]
    return questions


def question_about(name: str) -> str:
    """Format POPE's question about an object."""
    return f"Is there {'an' if name[0].lower() in 'aeiou' else 'a'} {name} in the image?"


def _readable(config: MllmPope, ctx: Context, source: AnnotatedSource, objects: Sequence[Sequence[str]]) -> list[int]:
    """Find the numbers of the images with enough objects that can be decoded, and skip the others."""
    wanted = [number for number, names in enumerate(objects) if len(names) >= config.per_image]
    good = []
    for number in wanted:
        try:
            source.image(number)
            good.append(number)
        except BadSample as bad:
            ctx.skip(bad.reason, bad.where)
    if wanted:
        ReadSettings(max_bad_fraction=config.max_bad_fraction).check_bad(ctx.bad, len(wanted), "images")
    return good


def _add_panel(ctx: Context, images: Sequence[bytes], questions: Sequence[Question]) -> None:
    folder = ctx.directory / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for number, question in enumerate(questions[:SHOWN]):
        file = f"panels/question-{number}.jpg"
        (ctx.directory / file).write_bytes(images[question.image])
        shown.append(PanelImage(file=file, caption=f"{question.text} {question.options[question.answer]}"))
    ctx.panel(ImagesPanel(title="Questions", note="The first ones.", order=30, pictures=shown))
