"""Cost of `mllm.train` before it runs, for `vfm plan --estimate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vfm.data import Questions
from vfm.models import planned_clip
from vfm.plugin import Cost, Preflight, QuestionDataset, Ref
from vfm.train import estimate_training
from vfm_diva.mllm.batches import MllmInputs
from vfm_diva.mllm.checks import check_train
from vfm_diva.mllm.language_models import planned_language_model
from vfm_diva.mllm.model import Mllm, empty_mllm, empty_tower, join_parts
from vfm_diva.mllm.stages import MllmTrain
from vfm_diva.mllm.task import MllmTask
from vfm_diva.mllm.train import checkpoint_blocks, reading_of, vocabulary

LOOKED_AT = 1000  # questions whose length is measured
# Assumed if the questions are not known yet: number of different words, words of a question, words of an answer.
WORDS = 1000
QUESTION = 24
ANSWER = 8


def mllm_train_cost(config: MllmTrain, ctx: Preflight) -> Cost:
    """Estimate the cost as if all sequences had the length of the longest one in a sample of the questions.

    It is unknown if the CLIP model or the model to start from is not known yet, or if the language model is on the hub.

    Raises:
        UserError: If `check_train` finds a mistake, such as data without questions.
    """
    check_train(config, ctx)
    texts = _QuestionTexts.of(config.data, ctx)
    known = ctx.artifact(config.data) is not None
    with torch.device("meta"):
        model = _planned(config, ctx)
        if isinstance(model, str):
            return Cost(unknown=(model,))
        checkpoint_blocks(model, config)
        task = MllmTask(model, config.trained)
    side = model.preprocess.image_size
    longest = 0
    num_answers = 0
    for turns in texts.conversations:
        tokens = model.encoder.sequence(turns)
        longest = max(longest, len(tokens.ids))
        num_answers += sum(tokens.is_answer)

    def inputs(number: int) -> MllmInputs:
        images = torch.zeros(number, 3, side, side, dtype=torch.uint8)
        ids = torch.zeros(number, longest, dtype=torch.int64)
        return MllmInputs(images, ids, torch.zeros(number, longest, dtype=torch.bool))

    answered = num_answers / len(texts.conversations)
    cost = estimate_training(task, inputs, config, selected=answered / (longest - 1))
    assumed = f"the questions {config.data}, for which {QUESTION + ANSWER} of {WORDS} words are assumed"
    if known:
        return cost
    return replace(cost, unknown=(assumed,))


@dataclass(frozen=True)
class _QuestionTexts:
    """Texts for building a vocabulary, and some conversations."""

    words: Sequence[str]
    conversations: Sequence[tuple[str, ...]]

    @classmethod
    def of(cls, ref: Ref[QuestionDataset], ctx: Preflight) -> _QuestionTexts:
        """Collect the texts of a dataset, or assume as many if it is not known yet."""
        data = ctx.artifact(ref)
        if data:
            questions = Questions(data)
            some = questions.items[:: -(-len(questions) // LOOKED_AT)]
            return cls(vocabulary(questions), [tuple(item.turns()) for item in some])
        words = [f"word{number}" for number in range(WORDS)]
        return cls(words, [(" ".join(words[:QUESTION]), " ".join(words[-ANSWER:]))])


def _planned(config: MllmTrain, ctx: Preflight) -> Mllm | str:
    """Build the initial model of a training run on torch's default device, or return the name of an unknown part."""
    if config.init:
        checkpoint = ctx.artifact(config.init)
        if checkpoint:
            return empty_mllm(checkpoint)
        stage = ctx.stage(config.init)
        if isinstance(stage, MllmTrain):
            return _planned(stage, ctx)
        return f"the model {config.init}"
    assert config.vision
    clip = planned_clip(ctx, config.vision)
    reading = reading_of(config)
    if clip is None:
        return f"the model {config.vision}"
    texts = [*_QuestionTexts.of(config.data, ctx).words, reading.prompt_words]
    planned = planned_language_model(config.language_model, texts)
    if planned is None:
        return f"the language model {config.language_model.source}"  # type: ignore[attr-defined]
    language_model, tokenizer = planned
    return join_parts(clip, empty_tower(clip), language_model, tokenizer, reading)
