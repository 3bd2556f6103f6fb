"""Stage `mllm.train`."""

from __future__ import annotations

from vfm.data import Questions
from vfm.models import load_clip
from vfm.plugin import Context, UserError
from vfm.train import fit, is_main
from vfm_diva.mllm.batches import QuestionBatches
from vfm_diva.mllm.model import Mllm, Reading, build_mllm, load_mllm
from vfm_diva.mllm.projector import load_projector
from vfm_diva.mllm.stages import MllmCheckpoint, MllmTrain
from vfm_diva.mllm.task import MllmTask


def train_mllm(config: MllmTrain, ctx: Context) -> MllmCheckpoint:
    """Run `mllm.train`."""
    questions = Questions(ctx.load(config.data))
    if not len(questions):
        raise UserError(f"{config.data}: the dataset has no questions to train on")
    model = build(config, ctx, questions)
    checkpoint_blocks(model, config)
    task = MllmTask(model, config.trained, seed=config.seed)
    data = QuestionBatches(questions, model.encoder, model.preprocess, config.seed, config.global_batch_size)
    fit(task, data, config, ctx)
    if is_main():
        trained = sum(param.numel() for param in task.parameters())
        ctx.log(f"{trained:,} weights trained, {model.encoder.num_image_tokens} tokens for each image")
    return task.export(ctx.directory)


def build(config: MllmTrain, ctx: Context, questions: Questions) -> Mllm:
    """Build or load the initial model of a training run.

    Args:
        config: Settings of the training.
        ctx: Context of the stage.
        questions: Training data.
    """
    if config.init:
        return load_mllm(ctx.load(config.init))
    assert config.vision
    clip = load_clip(ctx.load(config.vision))
    model = build_mllm(clip, config.language_model, vocabulary(questions), reading_of(config), config.seed)
    if config.projector:
        load_projector(model.projector, config.projector)
    return model


def checkpoint_blocks(model: Mllm, config: MllmTrain) -> None:
    """Recompute the blocks of the language model in the backward pass, if the training does so."""
    if config.grad_checkpointing:
        model.llava.model.language_model.gradient_checkpointing_enable()


def vocabulary(questions: Questions) -> list[str]:
    """List the texts for building a vocabulary of words."""
    texts: set[str] = set()
    for item in questions.items:
        texts.update((*item.history, item.text, *item.options))
    return sorted(texts)


def reading_of(config: MllmTrain) -> Reading:
    """Convert the settings of a training run to the rules of reading."""
    return Reading(config.layer, config.tokens, config.prompt, config.pad, config.later_prompt)
