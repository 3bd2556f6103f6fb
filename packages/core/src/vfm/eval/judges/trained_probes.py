"""Probes trained by gradient steps: linear on pooled features, attentive on patch tokens; one class or several."""

# N images, C classes

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vfm.eval.attentive_probe import GIB, AttentiveHead, TokenFile
from vfm.eval.encode import Encoded, ImageEncoder, Reading
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.judges.answers import Answered, encode_answered, hardest, judged
from vfm.eval.linear_probe import split_validation
from vfm.eval.sweep import LinearHead, Rows, Schedule, head_scores, sweep
from vfm.panels import LinesPanel, Series
from vfm.stage import Context


@dataclass(frozen=True)
class ProbeSettings:
    """Which probe, and how it is trained.

    validation_fraction: of the training images (of each class, where they have one), held out to choose the rate.
    max_cache_gib: disk that a model's patch tokens of one data set may take (attentive).
    """

    probe: Literal["linear", "attentive"]
    schedule: Schedule
    validation_fraction: float = 0.2
    max_cache_gib: float = 20.0


def judge_trained_probe(
    ctx: Context,
    models: Mapping[str, ImageEncoder],
    train: Answered,
    data: Answered,
    settings: ProbeSettings,
    *,
    device: torch.device,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge features by a probe; the split into training and validation is the same for all models.

    Returns:
        The hash of the test data and a judgement for each model.

    Raises:
        UserError: nothing can be held out, or the tokens need more disk than they may take.
    """
    folder = ctx.work / "tokens"
    try:
        known, known_answers, features = _encode(ctx, models, train, settings, "train", reading)
        test, answers, test_features = _encode(ctx, models, data, settings, "test", reading)
        split = _split(known_answers, settings)
        judgements, curves = {}, []
        for name in models:
            width = features[name].shape[-1]
            head = LinearHead if settings.probe == "linear" else AttentiveHead
            make = partial(head, width, len(data.class_names))
            swept = sweep(make, features[name], known_answers, split, settings.schedule, device)
            scores = head_scores(swept.head, test_features[name], np.arange(len(answers)))
            details = {
                **asdict(settings.schedule),
                "lr": swept.lr,
                "validation": {str(lr): found for lr, found in swept.validation.items()},
                "train_sha256": data_hash(train, known.digests),
            }
            prefix = "lp_" if settings.probe == "linear" else "attn_"
            judgements[name] = judged(scores, answers, test.keys, data, prefix, details)
            tried = sorted(swept.validation.items())
            curves.append(Series(name=name, x=[lr for lr, _ in tried], y=[100 * found for _, found in tried]))
        ctx.panel(hardest(data, answers, judgements))
        ctx.panel(_chosen_panel(curves, several=answers.ndim > 1))
        return data_hash(data, test.digests), judgements
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _encode(
    ctx: Context,
    models: Mapping[str, ImageEncoder],
    data: Answered,
    settings: ProbeSettings,
    part: str,
    reading: Reading,
) -> tuple[Encoded, Tensor, dict[str, Tensor]]:
    """What the probe sees of a set: pooled features, or patch tokens mapped from a file."""
    if settings.probe == "linear":
        images, answers = encode_answered(ctx, models, data, reading)
        return images, answers, images.features
    folder, most = ctx.work / "tokens", round(settings.max_cache_gib * GIB)
    files = {name: TokenFile(model, folder / f"{part}-{name}.fp16", most) for name, model in models.items()}
    images, answers = encode_answered(ctx, files, data, reading)
    return images, answers, {name: file.tokens() for name, file in files.items()}


def _split(answers: Tensor, settings: ProbeSettings) -> tuple[Rows, Rows]:
    fraction, seed = settings.validation_fraction, settings.schedule.seed
    # Of several labels none can be spread evenly but by chance: to a split they are one class.
    one = answers if answers.ndim == 1 else torch.zeros(len(answers), dtype=torch.int64)
    return split_validation(one.numpy(), fraction, seed)


def _chosen_panel(curves: list[Series], *, several: bool) -> LinesPanel:
    return LinesPanel(
        title="Learning rate chosen on validation",
        series=curves,
        x_label="learning rate",
        y_label="mean average precision on validation, %" if several else "% right on validation",
        x_log=True,
    )
