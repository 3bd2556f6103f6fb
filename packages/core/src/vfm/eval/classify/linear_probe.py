"""Fit logistic regression on frozen features, with the penalty chosen on a validation split.

It follows CLIP's protocol (Radford et al. 2021, appendix A.3: L-BFGS, a log grid of L2 penalties, chosen on
validation, refitted on training and validation together). Features are standardised, so that one grid fits every
model.
"""

# N images, C classes, D width

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from vfm.base import UserError
from vfm.eval.classify.checks import check_same_classes
from vfm.eval.classify.classification import encode_with_targets, result_from_scores
from vfm.eval.classify.classification_panels import add_class_panels
from vfm.eval.classify.probe_features import with_probe_features
from vfm.eval.classify.stages import LinearProbe
from vfm.eval.classify.sweep import LRS, ProbeSchedule, split_validation
from vfm.eval.classify.trained_probes import ProbeSettings, score_trained_probe
from vfm.eval.encode.hashes import data_hash, warn_of_overlap
from vfm.interfaces import Context, Evaluated, LabeledDataset, LinesPanel, Series
from vfm.models import ImageEncoder
from vfm.train import leave_to_first, resolve_device

Features = NDArray[np.floating]
Labels = NDArray[np.integer]

# A factor of ten apart, from nearly none to one that leaves little but the class means.
PENALTIES: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


def evaluate_linear_probe(config: LinearProbe, ctx: Context, encoders: Mapping[str, ImageEncoder]) -> Evaluated:
    """Evaluate features by logistic regression or, with solver sgd or lars, by a sweep of learning rates."""
    train = ctx.load(config.train)
    data = ctx.load(config.data)
    check_same_classes(config, train, data)
    encoders = with_probe_features(encoders, config.features)
    if config.solver != "lbfgs":
        schedule = ProbeSchedule(
            config.solver,
            tuple(config.lrs or LRS[config.solver]),
            config.epochs,
            config.train_batch_size,
            config.seed,
        )
        settings = ProbeSettings("linear", schedule, config.validation_fraction)
        device = resolve_device(config.runtime)
        return score_trained_probe(ctx, encoders, train, data, settings, device=device, reading=config.reading)
    assert isinstance(train, LabeledDataset)
    assert isinstance(data, LabeledDataset)
    return _evaluate_lbfgs(config, ctx, encoders, train, data)


def _evaluate_lbfgs(
    config: LinearProbe,
    ctx: Context,
    encoders: Mapping[str, ImageEncoder],
    train: LabeledDataset,
    data: LabeledDataset,
) -> Evaluated:
    """Evaluate by logistic regression, with the same split into training and validation for all models.

    Raises:
        UserError: If no class has an image to hold out.
    """
    known, known_targets = encode_with_targets(ctx, encoders, train, config.reading)
    known_labels = known_targets.numpy()
    # Split before encoding the test images, so that a set that cannot be split is rejected early.
    fitted, held_out = split_validation(known_labels, config.validation_fraction, config.seed)
    test, targets = encode_with_targets(ctx, encoders, data, config.reading)
    leave_to_first()
    warn_of_overlap(ctx, known.image_digests, test.image_digests)
    train_hash = data_hash(train, known.digests)
    results = {}
    curves = []
    for name in encoders:
        features = known.features[name].numpy()
        probe = fit_linear_probe(
            (features[fitted], known_labels[fitted]),
            (features[held_out], known_labels[held_out]),
            penalties=tuple(config.penalties or PENALTIES),
            max_iter=config.max_iter,
        )
        if not probe.converged:
            ctx.warn(f"{name}: L-BFGS did not converge in {config.max_iter} steps; raise max_iter")
        scores = probe.scores(test.features[name].numpy(), len(data.class_names))
        penalties, accuracies = zip(*sorted(probe.validation_accuracy.items()), strict=True)
        details = {
            "penalty": probe.penalty,
            "validation_accuracy": dict(zip(map(str, penalties), accuracies, strict=True)),
            "train_sha256": train_hash,
        }
        results[name] = result_from_scores(scores, targets, test.keys, data, "lp_", details)
        curves.append(Series(name=name, x=list(penalties), y=(100 * np.array(accuracies)).tolist()))
    add_class_panels(ctx, data, test, targets, results)
    ctx.panel(
        LinesPanel(
            title="Penalty chosen on validation",
            series=curves,
            x_label="L2 penalty",
            y_label="% right on validation",
            x_log=True,
        )
    )
    return Evaluated(data_hash(data, test.digests), results)


@dataclass(frozen=True)
class FittedProbe:
    """A fitted probe.

    Attributes:
        penalty: L2 weight relative to the *mean* loss, so that it does not depend on the number of images.
        validation_accuracy: Validation accuracy by penalty.
        converged: False if L-BFGS stopped at `max_iter`.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    model: LogisticRegression
    penalty: float
    validation_accuracy: dict[float, float]
    converged: bool

    def scores(self, features: Features, num_classes: int) -> NDArray[np.float64]:
        """Compute log-probabilities, (N, num_classes). Classes without a training image get -inf."""
        scores = np.full((len(features), num_classes), -np.inf)
        scores[:, self.model.classes_] = self.model.predict_log_proba((features - self.mean) / self.scale)
        return scores


def fit_linear_probe(
    train: tuple[Features, Labels],
    validation: tuple[Features, Labels],
    *,
    penalties: tuple[float, ...] = PENALTIES,
    max_iter: int,
) -> FittedProbe:
    """Fit on `train` for each penalty, choose the best one on `validation`, and refit on both.

    Among equally good penalties the strongest is chosen. Features are standardised by the statistics of `train`.

    Args:
        train: Features (N, D) and labels (N,).
        validation: The same for images that are not in `train`.
        penalties: L2 weights relative to the mean loss.
        max_iter: Largest number of L-BFGS steps.

    Raises:
        UserError: If `train` has fewer than two classes.
    """
    features = np.asarray(train[0], dtype=np.float64)
    labels = np.asarray(train[1])
    if len(np.unique(labels)) < 2:
        raise UserError("expected training images of two or more classes, got one class")
    # Standardised, so that one grid of penalties serves all models.
    mean = features.mean(axis=0)
    spread = features.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)  # constant features stay at zero
    x = (features - mean) / scale
    held_out = (validation[0] - mean) / scale
    accuracy: dict[float, float] = {}
    # One model for all penalties, from strong to weak: each fit starts from the last one and needs only a few steps.
    model = LogisticRegression(max_iter=max_iter, warm_start=True)
    for penalty in sorted(penalties, reverse=True):
        _fit(model, x, labels, penalty)
        accuracy[penalty] = float(np.mean(model.predict(held_out) == validation[1]))
    best = max(accuracy, key=accuracy.__getitem__)  # the first among equals, which is the strongest penalty
    final = LogisticRegression(max_iter=max_iter)
    converged = _fit(final, np.concatenate([x, held_out]), np.concatenate([labels, validation[1]]), best)
    return FittedProbe(mean, scale, final, best, accuracy, converged)


def _fit(model: LogisticRegression, x: Features, labels: Labels, penalty: float) -> bool:
    """Fit in place and report whether the fit converged."""
    model.set_params(C=1 / (penalty * len(x)))  # scikit-learn sums the loss over images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the evaluation warns once instead
        model.fit(x, labels)
    return bool(model.n_iter_.max() < model.max_iter)
