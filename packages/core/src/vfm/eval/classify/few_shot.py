"""Train a softmax classifier from k images per class, pulled towards its initial weights.

The initial weights are zero, or the zero-shot classifier of the text tower, which then acts as a prior. Protocol:
Radford et al. 2021, CLIP, section 3.1.2 (arXiv:2103.00020), with k images of each class, drawn several times. The
zero-shot start is from Li et al. 2022, ELEVATER (arXiv:2204.08790).
"""

# N images, S draws, C classes, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from vfm.base import UserError
from vfm.eval.base import ReadSettings
from vfm.eval.classify.checks import check_same_classes
from vfm.eval.classify.stages import FewShot
from vfm.eval.classify.zero_shot import zero_shot_classifier
from vfm.eval.encode.encoders import logit_scale
from vfm.eval.encode.features import encode_labeled
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import data_hash, warn_of_overlap
from vfm.eval.encode.ranking import label_ranks
from vfm.interfaces import Context, Evaluated, LabeledDataset, LinesPanel, ModelResult, Series
from vfm.models import ImageEncoder
from vfm.statistics import Accuracy
from vfm.train.parallel.sharing import leave_to_first

Floats = NDArray[np.float64]

MAX_ITER = 1000  # steps of L-BFGS


@dataclass(frozen=True)
class FewShotSettings:
    """Settings of few-shot classification.

    Attributes:
        shots: Numbers of training images per class.
        draws: Number of draws of the training images, with the seeds seed, seed + 1, ...
        words: Whether to start from the text tower's classifier.
        penalty: Strength of the pull towards the start.
        templates: Prompts of the text tower's classifier. Default: the templates of the test set.
        seed: Seed of the first draw.
    """

    shots: Sequence[int]
    draws: int
    words: bool
    penalty: float
    templates: Sequence[str] | None = None
    seed: int = 0


def evaluate_few_shot(config: FewShot, ctx: Context, encoders: Mapping[str, ImageEncoder]) -> Evaluated:
    """Evaluate features with `score_few_shot`."""
    train = ctx.load(config.train)
    data = ctx.load(config.data)
    check_same_classes(config, train, data)
    words = config.start == "zero_shot"
    settings = FewShotSettings(config.shots, config.draws, words, config.penalty, config.templates, config.seed)
    return score_few_shot(ctx, encoders, train, data, settings, reading=config.reading)


def score_few_shot(
    ctx: Context,
    encoders: Mapping[str, ImageEncoder],
    train: LabeledDataset,
    data: LabeledDataset,
    settings: FewShotSettings,
    *,
    reading: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
) -> Evaluated:
    """Score features by classifiers from few images, with the same draws for all models.

    A score is the mean over the draws. All draws share the test images, and the interval is over these images.
    `by_draw` in the result file shows how much the draws differ.

    Args:
        ctx: Context of the stage.
        encoders: Models by name.
        train: Images to draw from.
        data: Test images.
        settings: Numbers of images and draws.
        reading: Batch size and tolerance of bad samples.

    Raises:
        UserError: If `words` is set for a model without a text tower, or a class has no training image.
    """
    if settings.words:
        for name, model in encoders.items():
            if not hasattr(model, "encode_texts"):
                raise UserError(f"{name}: start: zero_shot needs a text tower, which this model does not have")
    known = encode_labeled(ctx, encoders, train, reading)
    test = encode_labeled(ctx, encoders, data, reading)
    every_class = range(len(data.class_names))
    missing = sorted(set(every_class) - set(known.labels.tolist()))
    if missing:  # its weights would stay at the start, which may be zero
        raise UserError(f"{ctx.name_of(train)}: class {data.class_names[missing[0]]!r} has no training image")
    starts = {}
    for name, model in encoders.items():
        width = known.features[name].shape[1]
        starts[name] = _start(name, model, data, settings, width, reading.batch_size)
    leave_to_first()
    warn_of_overlap(ctx, known.image_digests, test.image_digests)
    results = {}
    curves = []
    for name, start in starts.items():
        known_features = known.features[name].numpy()
        test_features = test.features[name].numpy()
        trials = {}
        scores = []
        by_draw = {}
        values: list[float | None] = []
        for shots in settings.shots:
            trial = _trials(known_features, known.labels, test_features, test.labels, start, shots, settings)
            trials[shots] = trial
            score = _accuracy(shots, trial.right, len(data.class_names))
            scores.append(score)
            by_draw[str(shots)] = trial.right.mean(axis=1).tolist()
            values.append(100 * score.value)
        details = {**asdict(settings), "by_draw": by_draw, "train_sha256": data_hash(train, known.digests)}
        results[name] = ModelResult(scores, {"images": _columns(test.keys, test.labels, trials)}, details)
        curves.append(Series(name=name, x=list(map(float, settings.shots)), y=values))
    ctx.panel(
        LinesPanel(
            title="Few-shot",
            order=40,
            series=curves,
            x_label="training images per class",
            y_label="% right",
            x_log=True,
        )
    )
    return Evaluated(data_hash(data, test.digests), results)


@dataclass(frozen=True)
class _Trials:
    """Predicted classes of the test images for one number of training images per class, by draw, (S, N)."""

    predicted: NDArray[np.int64]
    right: NDArray[np.bool_]


def _start(
    name: str, model: Any, data: LabeledDataset, settings: FewShotSettings, width: int, batch_size: int
) -> NDArray[np.floating]:
    """Compute the initial weights, (C, D)."""
    if not settings.words:
        return np.zeros((len(data.class_names), width))
    classifier = zero_shot_classifier(model, data.class_names, settings.templates or data.templates, batch_size, name)
    weights: NDArray[np.floating] = logit_scale(model) * classifier.double().numpy()
    check_finite(weights, name, data.class_names)
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
    predicted = []
    right = []
    for draw in range(settings.draws):
        # The same images for all models, so that their scores can be paired.
        some = draw_shots(known_labels, shots, settings.seed + draw)
        weights = fit_few_shot(known[some], known_labels[some], start, penalty=settings.penalty)
        scores = test.astype(np.float64) @ weights.T
        predicted.append(scores.argmax(axis=1))
        right.append(label_ranks(torch.from_numpy(scores), torch.from_numpy(labels)) == 0)  # so a tie is wrong
    return _Trials(np.stack(predicted), np.stack(right))


def _accuracy(shots: int, right: NDArray[np.bool_], num_classes: int) -> Accuracy:
    """Compute top-1 over all draws. The draws of an image are not independent, so it counts once in the interval."""
    draws, images = right.shape
    groups = np.tile(np.arange(images), draws) if draws > 1 else None
    return Accuracy(f"fs{shots}_acc1", right.ravel(), groups, chance=1 / num_classes)


def _columns(keys: Sequence[str], labels: NDArray[np.int64], trials: Mapping[int, _Trials]) -> dict[str, Any]:
    """Build columns with one row per image, draw and number of shots."""
    draws = next(iter(trials.values())).right.shape[0]
    times = draws * len(trials)
    return {
        "key": list(keys) * times,
        "label": np.tile(labels, times),
        "shots": np.repeat(list(trials), draws * len(keys)),
        "draw": np.tile(np.repeat(np.arange(draws), len(keys)), len(trials)),
        "predicted": np.concatenate([trial.predicted.ravel() for trial in trials.values()]),
    }


def draw_shots(labels: NDArray[np.integer], shots: int, seed: int) -> NDArray[np.int64]:
    """Draw some images of each class.

    Args:
        labels: Class of each image, (N,).
        shots: Number of images of a class. A class with fewer gives all.
        seed: Seed of the draw.

    Returns:
        Indices of the images in ascending order.
    """
    generator = np.random.default_rng([seed, shots])  # the draws for one number of shots do not depend on the others
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def fit_few_shot(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    start: NDArray[np.floating],
    *,
    penalty: float,
) -> Floats:
    """Fit the weights W (C, D) that minimise cross-entropy of softmax(x W^T) + penalty / (2 C) * ||W - start||^2.

    The problem is strictly convex, so the solution is unique. On average over classes, weights move by at most
    2 / penalty for any C, since the errors of the C probabilities of an image add up to at most 2.

    Args:
        features: Unit vectors, (N, D).
        labels: (N,) integers in 0..C-1.
        start: Initial weights, (C, D). Zeros make it plain logistic regression without an intercept.
        penalty: Weight of the distance from the start.
    """
    x, origin = np.asarray(features, dtype=np.float64), np.asarray(start, dtype=np.float64)
    pull, rows = penalty / len(origin), np.arange(len(x))

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(origin.shape)
        # In fp64, as the line search compares losses that differ in their last digits.
        logs = log_softmax(x @ weights.T, axis=1)
        error = np.exp(logs)
        error[rows, labels] -= 1
        moved = weights - origin
        gradient = error.T @ x / len(x) + pull * moved
        loss = -logs[rows, labels].mean() + pull / 2 * np.square(moved).sum()
        return float(loss), gradient.ravel()

    # Tight, since the result should not depend on where the solver stops.
    options = {"maxiter": MAX_ITER, "gtol": 1e-7 / len(origin), "ftol": 1e-13}
    solution = minimize(loss_and_gradient, origin.ravel(), jac=True, method="L-BFGS-B", options=options)
    weights: Floats = solution.x.reshape(origin.shape)
    return weights
