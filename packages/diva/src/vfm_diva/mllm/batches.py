"""Draw batches of questions by the seed and the step alone, whatever the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.data import BadSample, Batch, Question, Questions, SameEpochs, SampleDraw, SampleOrder, decode_image, to_tensor
from vfm.models import Preprocess
from vfm.plugin import UserError
from vfm_diva.mllm.prompts import QuestionTokenizer

MAX_TRIES = 20  # samples in a row that cannot be read


@dataclass(frozen=True)
class MllmInputs:
    """Inputs of a step.

    Attributes:
        images: Images, uint8 (B, 3, S, S).
        ids: Tokens of prompt, answer and end, int64 (B, T).
        answers: Mask of the tokens that count, bool (B, T).
    """

    images: Tensor
    ids: Tensor
    answers: Tensor


@dataclass(frozen=True)
class QuestionBatches:
    """Questions of a dataset, shuffled again in each epoch, in the form that `vfm.train.fit` takes."""

    questions: Questions
    encoder: QuestionTokenizer
    preprocess: Preprocess
    seed: int
    global_batch_size: int

    def steps(
        self, start_step: int, num_steps: int, *, rank: int, world_size: int, micro_batch_size: int
    ) -> Iterator[list[Batch[MllmInputs]]]:
        """Yield the steps of a training run, each as this process' micro-batches.

        Args:
            start_step: First step.
            num_steps: Step after the last one.
            rank: Number of this process.
            world_size: Number of processes.
            micro_batch_size: Samples of a micro-batch.

        Raises:
            UserError: If the batch size is not divisible by the processes, or the images cannot be read.
        """
        share, rest = divmod(self.global_batch_size, world_size)
        if rest:
            raise UserError(
                f"global_batch_size must be divisible by the {world_size} processes, got {self.global_batch_size}"
            )
        order = SampleOrder(SameEpochs([len(self.questions)]), seed=self.seed, shuffle_shards=1)
        for step in range(start_step, num_steps):
            first = step * self.global_batch_size + rank * share
            indices = order(first, first + share).tolist()
            batches = []
            for start in range(0, share, micro_batch_size):
                batches.append(self.batch(indices[start : start + micro_batch_size]))
            yield batches

    def batch(self, indices: Sequence[int]) -> Batch[MllmInputs]:
        """Load the questions with these indices. A question with an unreadable image is replaced by another one."""
        bad: list[tuple[str, str]] = []
        keys = []
        conversations = []
        images = []
        for index in indices:
            question, image = self._readable(index, bad)
            keys.append(question.key)
            conversations.append(question.turns())
            images.append(image)
        sequences = self.encoder.sequences(conversations)
        return Batch(MllmInputs(torch.stack(images), sequences.ids, sequences.answers), keys, bad)

    def _readable(self, index: int, bad: list[tuple[str, str]]) -> tuple[Question, Tensor]:
        for attempt in range(MAX_TRIES):
            if attempt:
                # A pure function of seed, attempt and index: every run replaces a question by the same one.
                index = SampleDraw.of(self.seed, -attempt, index).seed % len(self.questions)
            question = self.questions.items[index]
            try:
                return question, image_of(self.questions, question, self.preprocess)
            except BadSample as error:
                bad.append((error.reason, error.where))
        raise UserError(f"{bad[-1][1]}: {bad[-1][0]}; the {MAX_TRIES - 1} tried in its place cannot be read either")


def image_of(questions: Questions, question: Question, preprocess: Preprocess) -> Tensor:
    """Load the image of a question at a model's size.

    Args:
        questions: Dataset that has the image.
        question: One of its questions.
        preprocess: The model's preprocessing.

    Returns:
        uint8 (3, S, S).

    Raises:
        BadSample: If it cannot be read.
    """
    image = decode_image(questions.image(question.image), f"{questions.dataset.path}: {question.key}")
    return to_tensor(preprocess.fit(image))
