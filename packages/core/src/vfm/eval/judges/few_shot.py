"""Few-shot classification of features, from nothing or from the classifier that the text tower writes."""

# N test images, S draws, C classes, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vfm.artifacts import LabeledDataset
from vfm.config import UserError
from vfm.eval.compare import Verdict
from vfm.eval.encode import ImageEncoder, Reading, logit_scale
from vfm.eval.few_shot import draw_shots, fit_few_shot
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.judges.answers import encode_labeled, labels_of
from vfm.eval.judges.zero_shot import write_classifier
from vfm.eval.ranking import label_ranks
from vfm.panels import LinesPanel, Series
from vfm.stage import Context


@dataclass(frozen=True)
class FewShotSettings:
    """How few, and from where.

    shots: training images a class.
    draws: how often they are drawn, with the seeds seed, seed + 1, ...
    words: start from the text tower's classifier.
    templates: its prompts; None: the test set's.
    """

    shots: Sequence[int]
    draws: int
    words: bool
    penalty: float
    templates: Sequence[str] | None = None
    seed: int = 0


def judge_few_shot(
    ctx: Context,
    models: Mapping[str, ImageEncoder],
    train: LabeledDataset,
    data: LabeledDataset,
    settings: FewShotSettings,
    *,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge features by classifiers from few images; the draws are the same for all models.

    A score is the mean over the draws. Its interval is over test images, which all draws share; how far the draws
    differ is told in `by_draw`.

    Returns:
        The hash of the test data and a judgement for each model.

    Raises:
        UserError: a model without a text tower is to start from words, or a class has no training image.
    """
    if settings.words and (without := [name for name, model in models.items() if not hasattr(model, "encode_texts")]):
        raise UserError(f"{without[0]}: it has no text tower to start from; set start: nothing")
    known, test = encode_labeled(ctx, models, train, reading), encode_labeled(ctx, models, data, reading)
    known_labels, labels = labels_of(known), labels_of(test)
    if missing := sorted(set(range(len(data.class_names))) - set(known_labels.tolist())):
        raise UserError(f"class {data.class_names[missing[0]]!r} has no training image")
    judgements, curves = {}, []
    for name, model in models.items():
        start = _start(model, data, settings, known.features[name].shape[1], reading.batch_size)
        features = known.features[name].numpy(), test.features[name].numpy()
        trials = {
            shots: _trials(features[0], known_labels, features[1], labels, start, shots, settings)
            for shots in settings.shots
        }
        verdicts = [_verdict(shots, trial.right, len(data.class_names)) for shots, trial in trials.items()]
        details = {
            **asdict(settings),
            "by_draw": {str(shots): trial.right.mean(axis=1).tolist() for shots, trial in trials.items()},
            "train_sha256": data_hash(train, known.digests),
        }
        judgements[name] = Judgement(verdicts, {"images": _columns(test.keys, labels, trials)}, details)
        values = [100 * verdict.value for verdict in verdicts]
        curves.append(Series(name=name, x=[float(shots) for shots in settings.shots], y=values))
    ctx.panel(
        LinesPanel(
            title="Few-shot", order=40, series=curves, x_label="training images a class", y_label="% right", x_log=True
        )
    )
    return data_hash(data, test.digests), judgements


@dataclass(frozen=True)
class _Trials:
    """What classifiers from so many images a class say of the test images, draw by draw, (S, N)."""

    predicted: NDArray[np.int64]
    right: NDArray[np.bool_]


def _start(
    model: Any, data: LabeledDataset, settings: FewShotSettings, width: int, batch_size: int
) -> NDArray[np.floating]:
    """The weights that few images move away from, (C, D)."""
    if not settings.words:
        return np.zeros((len(data.class_names), width))
    classifier = write_classifier(model, data.class_names, settings.templates or data.templates, batch_size)
    weights: NDArray[np.floating] = logit_scale(model) * classifier.double().numpy()
    return weights


def _trials(
    known: NDArray[np.floating],
    known_labels: NDArray[np.int64],
    test: NDArray[np.floating],
    labels: NDArray[np.int64],
    start: NDArray[np.floating],
    shots: int,
    settings: FewShotSettings,
) -> _Trials:
    predicted, right = [], []
    for draw in range(settings.draws):
        some = draw_shots(known_labels, shots, settings.seed + draw)
        weights = fit_few_shot(known[some], known_labels[some], start, penalty=settings.penalty)
        scores = test.astype(np.float64) @ weights.T
        predicted.append(scores.argmax(axis=1))
        right.append(label_ranks(torch.from_numpy(scores), torch.from_numpy(labels)) == 0)  # a tie is wrong
    return _Trials(np.stack(predicted), np.stack(right))


def _verdict(shots: int, right: NDArray[np.bool_], num_classes: int) -> Verdict:
    """Top-1 over all draws; an image is one piece of evidence however often it was judged."""
    draws, images = right.shape
    groups = np.tile(np.arange(images), draws) if draws > 1 else None
    return Verdict(f"fs{shots}_acc1", right.ravel(), groups, chance=1 / num_classes)


def _columns(keys: Sequence[str], labels: NDArray[np.int64], trials: Mapping[int, _Trials]) -> dict[str, Any]:
    """A row an image, draw and number of shots."""
    draws = next(iter(trials.values())).right.shape[0]
    times = draws * len(trials)
    return {
        "key": list(keys) * times,
        "label": np.tile(labels, times),
        "shots": np.repeat(list(trials), draws * len(keys)),
        "draw": np.tile(np.repeat(np.arange(draws), len(keys)), len(trials)),
        "predicted": np.concatenate([trial.predicted.ravel() for trial in trials.values()]),
    }
