"""Evaluate MMVP-VLM's pairs by the official rule, and items of any shape (Winoground, SugarCrepe)."""

# P items, S statements, I images

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.choices.choices import Choice
from vfm.eval.base import ReadSettings
from vfm.eval.choices.choice_logits import ChoiceLogits, ClassAndPatches, choice_logits
from vfm.eval.choices.choice_panels import flip_panels, pattern_panel
from vfm.eval.choices.choice_rules import choose, mmvp_vlm
from vfm.eval.choices.stages import Choices, MmvpVlm
from vfm.eval.encode.hashes import data_hash
from vfm.interfaces import ChoiceDataset, Context, Evaluated, ModelResult
from vfm.models import ClipModel, TextImageEncoder
from vfm.statistics import Accuracy, stratified_mean


def evaluate_mmvp_vlm(config: MmvpVlm, ctx: Context, encoders: Mapping[str, TextImageEncoder]) -> Evaluated:
    """Evaluate models with `score_mmvp_vlm`."""
    data = ctx.load(config.data)
    prompt = config.prompt
    return score_mmvp_vlm(ctx, encoders, data, prompt=prompt, diva_scoring=config.diva_scoring, reading=config.reading)


def evaluate_choices(config: Choices, ctx: Context, encoders: Mapping[str, TextImageEncoder]) -> Evaluated:
    """Evaluate models with `score_choices`."""
    return score_choices(ctx, encoders, ctx.load(config.data), prompt=config.prompt, reading=config.reading)


def score_mmvp_vlm(
    ctx: Context,
    encoders: Mapping[str, TextImageEncoder],
    data: ChoiceDataset,
    *,
    prompt: str,
    diva_scoring: bool = False,
    reading: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
) -> Evaluated:
    """Score models on pairs by the official MMVP-VLM rule (`mmvp_vlm`).

    Args:
        ctx: Context of the stage.
        encoders: Models by name.
        data: The pairs.
        prompt: Template of a statement.
        diva_scoring: Also score all models with DIVA's image feature (`ClassAndPatches`) as `diva_pair_accuracy`.
            DIVA's authors scored their models this way, but the models they compared with officially.
        reading: Batch size and tolerance of bad samples.

    Raises:
        UserError: If an item is not two images and two statements, or diva_scoring is set for a model without patches.
    """
    # DIVA's features are additional encoders in the same pass, so that each image is decoded once.
    others: dict[str, ClassAndPatches] = {}
    if diva_scoring:
        for name, model in encoders.items():
            others[_diva_name(name)] = ClassAndPatches(_clip(name, model))
    choices = choice_logits(ctx, {**encoders, **others}, data, prompt, reading, partial(_check_pair, ctx.name_of(data)))
    truth = np.array([item.truth for item in choices.items])  # (P, 2)
    results = {}
    rights = {}
    correct = {}
    for name in encoders:
        result = mmvp_vlm(np.stack(choices.logits[name]), truth)
        # The two statements of a pair share its images, so for single statements the pairs are the independent items.
        single = Accuracy("statement_accuracy", result.right.ravel(), np.repeat(np.arange(len(truth)), 2), chance=0.5)
        # Both questions of a pair must be right, each a choice of two.
        pairs = Accuracy("pair_accuracy", result.correct, chance=0.25)
        aligned = Accuracy("aligned_pairs", result.aligned, chance=0.5)
        parts = _by_pattern("pair_accuracy", result.correct, choices, np.full(len(truth), 0.25))
        columns: dict[str, object] = {"key": choices.keys, "pattern": choices.pattern_of_items}
        for side in (0, 1):
            columns[f"truth_{side + 1}"] = truth[:, side] + 1
            columns[f"predicted_{side + 1}"] = result.prediction[:, side] + 1
            columns[f"probability_{side + 1}"] = result.probability[:, side]
        columns["correct"] = result.correct
        details = {"mean_over_patterns": stratified_mean(result.correct, choices.patterns), "prompt": prompt}
        scores = [pairs, single, aligned, *parts]
        if diva_scoring:
            diva_result = mmvp_vlm(np.stack(choices.logits[_diva_name(name)]), truth)
            scores.append(Accuracy("diva_pair_accuracy", diva_result.correct, chance=0.25))
            columns["diva_correct"] = diva_result.correct
        results[name] = ModelResult(scores, {"pairs": columns}, details)
        rights[name] = result.right
        correct[name] = result.correct
    pattern_panel(ctx, choices, correct)
    flip_panels(ctx, data, choices, rights)
    return Evaluated(data_hash(data, choices.digests), results)


def _check_pair(data: str, item: Choice) -> None:
    if (len(item.images), len(item.statements)) != (2, 2) or min(item.truth) < 0:
        shape = f"{len(item.images)} images and {len(item.statements)} statements"
        takes_any = "eval.choices takes any"
        raise UserError(f"{data}: item {item.key}: expected two images and two statements, got {shape}; {takes_any}")
    if item.truth[0] == item.truth[1]:
        raise UserError(f"{data}: item {item.key}: expected one statement for each image, got two for one image")


def score_choices(
    ctx: Context,
    encoders: Mapping[str, TextImageEncoder],
    data: ChoiceDataset,
    *,
    prompt: str,
    reading: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
) -> Evaluated:
    """Score models on items of any shape with Winoground's rule (`choose`).

    Args:
        ctx: Context of the stage.
        encoders: Models by name.
        data: The items.
        prompt: Template of a statement.
        reading: Batch size and tolerance of bad samples.
    """
    choices = choice_logits(ctx, encoders, data, prompt, reading)
    rights = []  # (S, I) each
    chances = []
    for item in choices.items:
        right = np.array(item.truth)[:, None] == np.arange(len(item.images))
        rights.append(right)
        chances.append(_chances(right))
    text_chance, image_chance, group_chance = np.array(chances).T
    results = {}
    group_right = {}
    correct = {}
    for name in encoders:
        # Items differ in their numbers of images and statements, so each is scored alone.
        outcomes = []
        for logits, right in zip(choices.logits[name], rights, strict=True):
            outcome = choose(logits[None], right)
            outcomes.append([outcome.text, outcome.image, outcome.group])
        text, image, group = np.concatenate(outcomes, axis=1)  # (P,) each
        scores = [
            Accuracy("acc", group, chance=_mean(group_chance)),
            Accuracy("text_acc", text, chance=_mean(text_chance)),
        ]
        if any(len(item.images) > 1 for item in choices.items):
            scores.append(Accuracy("image_acc", image, chance=_mean(image_chance)))
        scores += _by_pattern("acc", group, choices, group_chance)
        columns = {
            "key": choices.keys,
            "pattern": choices.pattern_of_items,
            "text": text,
            "image": image,
            "correct": group,
        }
        results[name] = ModelResult(scores, {"items": columns}, {"prompt": prompt})
        group_right[name] = group[:, None]
        correct[name] = group
    pattern_panel(ctx, choices, correct)
    flip_panels(ctx, data, choices, group_right)
    return Evaluated(data_hash(data, choices.digests), results)


def _by_pattern(
    metric: str, correct: NDArray[np.bool_], choices: ChoiceLogits, chance: NDArray[np.float64]
) -> list[Accuracy]:
    """Compute the accuracy on the items of each pattern, if there are several; `chance` is per item, (P,)."""
    if len(choices.names) < 2:
        return []
    scores = []
    for number, name in enumerate(choices.names):
        members = choices.patterns == number
        scores.append(Accuracy(f"{metric}/{name}", correct[members], chance=_mean(chance[members])))
    return scores


def _diva_name(name: str) -> str:
    return f"{name}, DIVA's scoring"


def _clip(name: str, model: TextImageEncoder) -> ClipModel:
    if not isinstance(model, ClipModel):
        raise UserError(f"{name}: diva_scoring needs the patch tokens of a CLIP model, got {type(model).__name__}")
    return model


def _chances(right: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Compute the chance of random scores on an item (S, I) for text, image and group, NaN if it has no closed form.

    The best statement of an image is correct with probability correct / all, independently for each image. The group
    of two images and two statements has chance 1/6 (Winoground), since one diagonal must hold the two highest scores.
    """
    of_images = right.mean(axis=0)
    of_statements = right.mean(axis=1)
    text = float(of_images[of_images > 0].prod())
    image = float(of_statements[of_statements > 0].prod())
    if right.shape[1] == 1:
        return text, image, text
    if right.shape == (2, 2):
        return text, image, 1 / 6
    return text, image, np.nan


def _mean(chances: NDArray[np.float64]) -> float | None:
    """Average the chances. The mean is None if one of them is unknown."""
    if np.isnan(chances).any():
        return None
    return float(chances.mean())
