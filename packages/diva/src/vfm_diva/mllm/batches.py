"""Batches of questions for a training: a pure function of the seed and the step, whatever the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.data import (
    BadSample,
    Batch,
    Question,
    Questions,
    SameEpochs,
    SampleDraw,
    SampleOrder,
    decode_image,
    to_tensor,
)
from vfm.models import Preprocess
from vfm.plugin import UserError
from vfm_diva.mllm.prompts import QuestionTokenizer

MAX_TRIES = 20


@dataclass(frozen=True)
class MllmInputs:
    """Inputs of a step.

    images: uint8 (B, 3, S, S).
    ids: prompt, answer and end, int64 (B, T).
    answers: the tokens that count, bool (B, T).
    """

    images: Tensor
    ids: Tensor
    answers: Tensor


@dataclass(frozen=True)
class QuestionBatches:
    """The questions of a dataset, shuffled anew in each epoch, as `vfm.train.fit` takes them."""

    questions: Questions
    encoder: QuestionTokenizer
    preprocess: Preprocess
    seed: int
    global_batch_size: int

    def steps(
        self, start_step: int, num_steps: int, *, rank: int, world_size: int, micro_batch_size: int
    ) -> Iterator[list[Batch[MllmInputs]]]:
        """Yield the steps `start_step` to `num_steps - 1`, each as this process' micro-batches.

        Raises:
            UserError: the batch size is not divisible by the processes, or the images cannot be read.
        """
        share, rest = divmod(self.global_batch_size, world_size)
        if rest:
            raise UserError(
                f"global_batch_size must be divisible by the {world_size} processes, got {self.global_batch_size}"
            )
        order = SampleOrder(SameEpochs([len(self.questions)]), seed=self.seed, shuffle_shards=1)
        for step in range(start_step, num_steps):
            first = step * self.global_batch_size + rank * share
            places = order(first, first + share).tolist()
            parts = math.ceil(share / micro_batch_size)
            yield [self.batch(places[part * micro_batch_size : (part + 1) * micro_batch_size]) for part in range(parts)]

    def batch(self, places: Sequence[int]) -> Batch[MllmInputs]:
        """Return the questions of these numbers; one whose image cannot be read is replaced by another."""
        bad: list[tuple[str, str]] = []
        used = [self._readable(place, bad) for place in places]
        items = [question for question, _ in used]
        made = self.encoder.sequences([(item.text, item.options[item.answer]) for item in items])
        images = torch.stack([image for _, image in used])
        return Batch(MllmInputs(images, made.ids, made.answers), [item.key for item in items], bad)

    def _readable(self, place: int, bad: list[tuple[str, str]]) -> tuple[Question, Tensor]:
        for attempt in range(MAX_TRIES):
            if attempt:
                place = SampleDraw.of(self.seed, -attempt, place).seed % len(self.questions)
            question = self.questions.items[place]
            try:
                return question, image_of(self.questions, question, self.preprocess)
            except BadSample as error:
                bad.append((error.reason, error.where))
        raise UserError(f"{bad[-1][1]}: {bad[-1][0]}; the {MAX_TRIES - 1} tried in its place cannot be read either")


def image_of(questions: Questions, question: Question, preprocess: Preprocess) -> Tensor:
    """Return the image of a question at a model's size, uint8 (3, S, S).

    Raises:
        BadSample: it cannot be read.
    """
    image = decode_image(questions.image(question.image), f"{questions.dataset.path}: {question.key}")
    return to_tensor(preprocess.fit(image))
