"""Stage `eval.mllm`: find the option of each question that a model considers most likely."""

# Q questions, O options

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.data import BadSample, Question, Questions, decode_image, pairs_of
from vfm.eval import CaptionedImage, check_finite, data_hash, images_panel, item_digest, report_models
from vfm.models import eval_mode
from vfm.plugin import Context, Evaluated, ModelResult, Report, Score, UserError
from vfm.train import in_batches, leave_to_first, of_all, own_share
from vfm_diva.mllm.batches import image_of
from vfm_diva.mllm.model import Mllm, load_mllm
from vfm_diva.mllm.scores import chosen, pair_scores, question_scores, yes_no_scores
from vfm_diva.mllm.stages import EvalMllm, MllmCheckpoint
from vfm_diva.mllm.task import row_sums

GREY = 128  # of the images that the control without images sees
IMAGES_SHOWN = 12  # of the panel
YES_NO = ["no", "yes"]


def evaluate_checkpoints(config: EvalMllm, ctx: Context) -> Report:
    """Load the models, evaluate them on the same questions, and write the report."""

    def load(name: str, checkpoint: MllmCheckpoint, device: torch.device) -> Mllm:
        return load_mllm(checkpoint).to(device)

    return report_models(config, ctx, load, partial(config.evaluate, ctx))


def evaluate_mllm(config: EvalMllm, ctx: Context, models: Mapping[str, Mllm]) -> Evaluated:
    """Evaluate language models with images by the likelihood of the options.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        models: Models by their names.

    Raises:
        UserError: If a question has only one option, or too many images or one of each pair are unreadable.
    """
    questions = Questions(ctx.load(config.data))
    items = _usable(questions, config, ctx)
    if not items:
        raise UserError(f"{config.data}: no question is left without those whose images cannot be read")
    for item in items:
        if len(item.options) < 2:
            raise UserError(f"{config.data}: {item.key} has one option; an evaluation needs two or more")

    def compare(part: Sequence[Question]) -> dict[str, list[list[float]]]:
        return {name: _read_and_compare(config, model, questions, part, name) for name, model in models.items()}

    likelihoods: defaultdict[str, list[list[float]]] = defaultdict(list)
    done = 0
    for part in of_all(map(compare, own_share(in_batches(items, config.micro_batch_size)))):
        for name, rows in part.items():
            likelihoods[name] += rows
        done += len(rows)
        ctx.progress(done, len(items), "questions")
    leave_to_first()
    results: dict[str, ModelResult] = {}
    for name, rows in likelihoods.items():
        correct = np.array([chosen(row, item.answer) for row, item in zip(rows, items, strict=True)])
        results[name] = ModelResult(
            _scores(items, correct, rows),
            {"questions": _table(items, correct, rows)},
            {"blind": config.blind, "prompt": models[name].facts.prompt},
        )
    if len(models) > 1 and not config.blind:
        _add_differing(ctx, questions, items, likelihoods)
    digests = []
    for item in items:
        facts = [item.key, item.text, item.options, item.answer]
        digests.append(item_digest(facts, [questions.image(item.image)]))
    return Evaluated(data_hash(questions.dataset, digests), results)


def option_likelihoods(
    model: Mllm, images: Tensor, items: Sequence[Question], name: str = "model"
) -> list[list[float]]:
    """Compute the log-likelihood of each option with the end after it, for each question.

    Args:
        model: Model in evaluation mode.
        images: Images of the questions, uint8 (Q, 3, S, S).
        items: Questions.
        name: Name of the model, for errors.
    """
    texts: list[Sequence[str]] = []
    num_options = []
    for item in items:
        texts.extend(map(item.turns, range(len(item.options))))
        num_options.append(len(item.options))
    sequences = model.encoder.sequences(texts, last_only=True)
    ids = sequences.ids.to(images.device)
    answers = sequences.answers.to(images.device)
    with torch.inference_mode():
        counts = torch.tensor(num_options, device=images.device)
        states = model.image_states(images).repeat_interleave(counts, dim=0)
        values = -row_sums(model.answer_losses(states, ids, answers), answers)
    check_finite(values, name, [turns[-2] for turns in texts])
    return [part.tolist() for part in torch.split(values.cpu(), num_options)]


def _read_and_compare(
    config: EvalMllm, model: Mllm, questions: Questions, items: Sequence[Question], name: str
) -> list[list[float]]:
    """Read the images of a few questions, and compute the likelihoods of their options."""
    change = {"resize_mode": config.resize_mode} if config.resize_mode else {}
    preprocess = model.preprocess.model_copy(update=change)
    images = torch.stack([image_of(questions, item, preprocess) for item in items])
    if config.blind:
        # The control without an image.
        images = torch.full_like(images, GREY)
    with eval_mode(model):
        return option_likelihoods(model, images.to(next(model.parameters()).device), items, name)


def _usable(questions: Questions, config: EvalMllm, ctx: Context) -> list[Question]:
    """Select the questions whose image can be read. Of a pair, both are selected or none."""
    bad = _unreadable(questions, config, ctx)
    broken = {item.pair for item in questions.items if item.image in bad and item.pair >= 0}
    return [item for item in questions.items if item.image not in bad and item.pair not in broken]


def _unreadable(questions: Questions, config: EvalMllm, ctx: Context) -> set[int]:
    """Find the numbers of the images that cannot be read. Raises UserError if they are too many."""

    def problem(number: int) -> BadSample | None:
        try:
            decode_image(questions.image(number), f"{config.data}: image {number}")
        except BadSample as error:
            return error
        return None

    numbers = sorted({item.image for item in questions.items})
    bad = set()
    reasons: Counter[str] = Counter()
    for number, error in zip(numbers, of_all(map(problem, own_share(numbers))), strict=True):
        if error:
            bad.add(number)
            reasons[error.reason] += 1
            ctx.skip(error.reason, error.where)
    config.reading.check_bad(reasons, questions.dataset.num_images, "images")
    return bad


def _scores(
    items: Sequence[Question], correct: NDArray[np.bool_], likelihoods: Sequence[Sequence[float]]
) -> list[Score]:
    """Compute all scores. If there are pairs, the pairs' score is the first."""
    families = [item.family for item in items]
    numbers = [(len(item.options), item.image, item.pair, item.answer) for item in items]
    num_options, images, pair_numbers, answers = np.array(numbers).T
    # The unit is the largest group of answers that depend on each other: a pair, or an image with its questions. The
    # number of items is added to an image's number, so that it differs from all pairs.
    units = np.where(pair_numbers >= 0, pair_numbers, len(items) + images)
    pairs = pairs_of(items)
    scores: list[Score] = pair_scores(correct, pairs, num_options, families) if pairs else []
    scores += question_scores(correct, units, num_options, [""] * len(items) if pairs else families)
    yes = _yes_options(items)
    if yes is not None:
        values = np.array(likelihoods)
        rows = np.arange(len(items))
        said_yes = values[rows, yes] > values[rows, 1 - yes]
        scores += yes_no_scores(said_yes, answers == yes, images)
    return scores


def _yes_options(items: Sequence[Question]) -> NDArray[np.int64] | None:
    """Find the index of the option "yes" of each question, (Q,), if all have the options yes and no."""
    indices = []
    for item in items:
        words = [option.strip().lower() for option in item.options]
        if sorted(words) != YES_NO:
            return None
        indices.append(words.index("yes"))
    return np.array(indices)


def _table(
    items: Sequence[Question], correct: NDArray[np.bool_], likelihoods: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Build the columns of the predictions."""
    columns: defaultdict[str, Any] = defaultdict(list)
    for item, row in zip(items, likelihoods, strict=True):
        columns["key"].append(item.key)
        columns["family"].append(item.family)
        columns["pair"].append(item.pair)
        columns["answer"].append(item.options[item.answer])
        columns["predicted"].append(_likeliest(item, row))
        columns["log_likelihoods"].append(list(row))
    columns["correct"] = correct
    return columns


def _likeliest(item: Question, likelihoods: Sequence[float]) -> str:
    """Find the option with the highest likelihood."""
    return item.options[int(np.argmax(likelihoods))]


def _add_differing(
    ctx: Context, questions: Questions, items: Sequence[Question], likelihoods: Mapping[str, Sequence[Sequence[float]]]
) -> None:
    """Show questions that the first and the second model answer differently."""
    (first, first_rows), (second, second_rows) = list(likelihoods.items())[:2]
    by_family: dict[str, list[CaptionedImage]] = {}
    for item, first_row, second_row in zip(items, first_rows, second_rows, strict=True):
        first_option = _likeliest(item, first_row)
        second_option = _likeliest(item, second_row)
        # Only disagreements show a difference of the models.
        if first_option != second_option:
            image = decode_image(questions.image(item.image), item.key)
            right = item.options[item.answer]
            caption = f"{item.text} {first}: {first_option}; {second}: {second_option}; right: {right}"
            by_family.setdefault(item.family, []).append(CaptionedImage(image, caption, second_option == right))
    per_family = max(1, IMAGES_SHOWN // max(1, len(by_family)))
    images: list[CaptionedImage] = []
    for shown in by_family.values():
        images += shown[:per_family]
    if images:
        title = f"Questions that {first} and {second} answer differently"
        ctx.panel(images_panel(ctx.directory, "differing", title, images, order=40))
