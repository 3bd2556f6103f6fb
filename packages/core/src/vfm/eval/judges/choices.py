"""Caption choice: MMVP-VLM's pairs by the official rule, and items of any shape (Winoground, SugarCrepe)."""

# P items, S statements, I images

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vfm.artifacts import ChoiceDataset
from vfm.config import UserError
from vfm.data.choices import Choice
from vfm.eval.choices import choose, mmvp_vlm
from vfm.eval.compare import Verdict
from vfm.eval.encode import Reading, TextImageEncoder
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.judges.choice_panels import flip_panels, pattern_panel
from vfm.eval.judges.choice_scores import Scored, score_choices
from vfm.eval.judges.class_and_patches import ClassAndPatches
from vfm.eval.statistics import stratified_mean
from vfm.models import ClipModel
from vfm.stage import Context


def judge_mmvp_vlm(
    ctx: Context,
    models: Mapping[str, TextImageEncoder],
    data: ChoiceDataset,
    *,
    prompt: str,
    diva_scoring: bool = False,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge models on pairs by the official MMVP-VLM rule (`vfm.eval.choices.mmvp_vlm`).

    With `diva_scoring` all of them are judged by DIVA's image feature too (`ClassAndPatches`), as `diva_pair_accuracy`:
    its authors compared theirs by that rule with others by the official one.

    Returns:
        The hash of the data and a judgement for each model.

    Raises:
        UserError: an item is not two images and two statements, or DIVA's scoring is wanted of what has no patches.
    """

    def check(item: Choice) -> None:
        if (len(item.images), len(item.statements)) != (2, 2) or min(item.truth) < 0:
            shape = f"{len(item.images)} images and {len(item.statements)} statements"
            raise UserError(
                f"item {item.key} has {shape}; MMVP-VLM judges pairs of two and two, eval.choices judges any"
            )
        if item.truth[0] == item.truth[1]:
            raise UserError(f"item {item.key}: both statements are of one picture; MMVP-VLM wants one of each")

    others = {_by_diva(name): ClassAndPatches(_clip(name, model)) for name, model in models.items() if diva_scoring}
    scored = score_choices(ctx, {**models, **others}, data, prompt, reading, check)
    truth = np.array([item.truth for item in scored.items])
    judgements, rights = {}, {}
    for name in models:
        result = mmvp_vlm(np.stack(scored.logits[name]), truth)
        # Both statements of a pair share its images: for the single statements the pairs are the independent items.
        single = Verdict("statement_accuracy", result.right.ravel(), np.repeat(np.arange(len(truth)), 2), chance=0.5)
        pairs = Verdict("pair_accuracy", result.correct, chance=0.25)
        aligned = Verdict("aligned_pairs", result.aligned, chance=0.5)
        parts = _by_pattern("pair_accuracy", result.correct, scored, np.full(len(truth), 0.25))
        columns: dict[str, object] = {"key": scored.keys, "pattern": [item.pattern for item in scored.items]}
        for side in (0, 1):
            columns[f"truth_{side + 1}"] = truth[:, side] + 1
            columns[f"predicted_{side + 1}"] = result.prediction[:, side] + 1
            columns[f"probability_{side + 1}"] = result.probability[:, side]
        columns["correct"] = result.correct
        details = {"mean_over_patterns": stratified_mean(result.correct, scored.patterns), "prompt": prompt}
        verdicts = [pairs, single, aligned, *parts]
        if diva_scoring:
            correct = mmvp_vlm(np.stack(scored.logits[_by_diva(name)]), truth).correct
            verdicts.append(Verdict("diva_pair_accuracy", correct, chance=0.25))
            columns["diva_correct"] = correct
        judgements[name] = Judgement(verdicts, {"pairs": columns}, details)
        rights[name] = result.right
    pattern_panel(ctx, scored, {name: j.predictions["pairs"]["correct"] for name, j in judgements.items()})
    flip_panels(ctx, scored, rights)
    return data_hash(data, scored.digests), judgements


def judge_choices(
    ctx: Context,
    models: Mapping[str, TextImageEncoder],
    data: ChoiceDataset,
    *,
    prompt: str,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge models on items of any shape by Winoground's rule (`vfm.eval.choices.choose`).

    Returns:
        The hash of the data and a judgement for each model.
    """
    scored = score_choices(ctx, models, data, prompt, reading)
    rights = [np.array(item.truth)[:, None] == np.arange(len(item.images)) for item in scored.items]  # (S, I) each
    text_chance, image_chance, group_chance = np.array([_chances(right) for right in rights]).T
    judgements, group_right = {}, {}
    for name in models:
        results = [choose(scores[None], right) for scores, right in zip(scored.logits[name], rights, strict=True)]
        text, image, group = (
            np.array([getattr(result, part)[0] for result in results]) for part in ("text", "image", "group")
        )
        verdicts = [
            Verdict("acc", group, chance=_mean(group_chance)),
            Verdict("text_acc", text, chance=_mean(text_chance)),
        ]
        if any(len(item.images) > 1 for item in scored.items):
            verdicts.append(Verdict("image_acc", image, chance=_mean(image_chance)))
        verdicts += _by_pattern("acc", group, scored, group_chance)
        columns = {
            "key": scored.keys,
            "pattern": [item.pattern for item in scored.items],
            "text": text,
            "image": image,
            "correct": group,
        }
        judgements[name] = Judgement(verdicts, {"items": columns}, {"prompt": prompt})
        group_right[name] = group[:, None]
    pattern_panel(ctx, scored, {name: j.predictions["items"]["correct"] for name, j in judgements.items()})
    flip_panels(ctx, scored, group_right)
    return data_hash(data, scored.digests), judgements


def _by_pattern(metric: str, correct: NDArray[np.bool_], scored: Scored, chance: NDArray[np.float64]) -> list[Verdict]:
    """The share right of each pattern's items, where there are several patterns; `chance` is each item's, (P,)."""
    if len(scored.names) < 2:
        return []
    members = [(name, scored.patterns == number) for number, name in enumerate(scored.names)]
    return [Verdict(f"{metric}/{name}", correct[those], chance=_mean(chance[those])) for name, those in members]


def _by_diva(name: str) -> str:
    """What a model is called where its images are described in DIVA's way."""
    return f"{name}, DIVA's scoring"


def _clip(name: str, model: TextImageEncoder) -> ClipModel:
    if not isinstance(model, ClipModel):
        raise UserError(f"{name}: diva_scoring wants a CLIP model's patches")
    return model


def _chances(right: NDArray[np.bool_]) -> tuple[float, float, float]:
    """What random scores get on an item (S, I): text, image, and group, which is NaN where it has no closed form.

    Each image's best statement is a right one with chance (right / all); the images' draws are independent. For the
    group of two images and two statements it is 1/6 (Winoground): one diagonal must hold the two highest scores.
    """
    text = float(np.prod([share for share in right.mean(axis=0) if share > 0]))
    image = float(np.prod([share for share in right.mean(axis=1) if share > 0]))
    group = text if right.shape[1] == 1 else 1 / 6 if right.shape == (2, 2) else np.nan
    return text, image, group


def _mean(chances: NDArray[np.float64]) -> float | None:
    """The mean chance, None where one is not known."""
    return None if np.isnan(chances).any() else float(chances.mean())
