"""Linear probe: logistic regression on frozen features, its penalty chosen on a validation split.

Follows CLIP's protocol (Radford et al. 2021, appendix A.3: L-BFGS, a log grid of L2 penalties, chosen on validation,
refitted on training and validation together) with standardised features, so that one grid fits every model.
"""

# N images, C classes, D width

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from vfm.config import UserError

Features = NDArray[np.floating]
Labels = NDArray[np.integer]

PENALTIES: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    `penalty` is the L2 weight beside the *mean* loss, so it means the same for any number of images;
    `validation_accuracy` holds the share right for each penalty tried; `converged` is False if L-BFGS ran out of steps.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    model: LogisticRegression
    penalty: float
    validation_accuracy: dict[float, float]
    converged: bool

    def scores(self, features: Features, num_classes: int) -> NDArray[np.float64]:
        """Log-probability of each class, (N, num_classes); classes that were never seen in training get -inf."""
        scores = np.full((len(features), num_classes), -np.inf)
        scores[:, self.model.classes_] = self.model.predict_log_proba((features - self.mean) / self.scale)
        return scores


def fit_linear_probe(
    train: tuple[Features, Labels],
    validation: tuple[Features, Labels],
    *,
    penalties: tuple[float, ...] = PENALTIES,
    max_iter: int = 1000,
) -> LinearProbe:
    """Fit on `train` for each penalty, keep the one that is best on `validation`, refit on both.

    Of equally good penalties the strongest is kept. Standardisation is measured on the training features alone.

    Args:
        train: features (N, D) and labels (N,).
        validation: the same for images that are not in `train`.
        penalties: L2 weights beside the mean loss.
        max_iter: L-BFGS steps.

    Raises:
        UserError: fewer than two classes in `train`.
    """
    features, labels = np.asarray(train[0], dtype=np.float64), np.asarray(train[1])
    if len(np.unique(labels)) < 2:
        raise UserError("a linear probe needs images of two or more classes to train on")
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    x, held_out = (features - mean) / scale, (validation[0] - mean) / scale
    accuracy: dict[float, float] = {}
    # One model for all penalties, from strong to weak: each fit starts from the last and needs a few steps only.
    model = LogisticRegression(max_iter=max_iter, warm_start=True)
    for penalty in sorted(penalties, reverse=True):
        _fit(model, x, labels, penalty)
        accuracy[penalty] = float(np.mean(model.predict(held_out) == validation[1]))
    best = max(accuracy, key=accuracy.__getitem__)
    final = LogisticRegression(max_iter=max_iter)
    converged = _fit(final, np.concatenate([x, held_out]), np.concatenate([labels, validation[1]]), best)
    return LinearProbe(mean, scale, final, best, accuracy, converged)


def split_validation(labels: Labels, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of training and validation images: of each class the share `fraction` (rounded down) is held out.

    It is one image at least, where a class has two or more; the one image of a class is kept for training.

    Raises:
        UserError: no class has a second image.
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held_out.append(members[: max(int(len(members) * fraction), int(len(members) > 1))])
    validation = np.sort(np.concatenate(held_out))
    if not len(validation):
        raise UserError(
            "validation_fraction: nothing can be held out to choose by: each class has one training image;"
            " two or more of a class are needed"
        )
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def _fit(model: LogisticRegression, x: Features, labels: Labels, penalty: float) -> bool:
    """Fit, and say whether it converged."""
    model.set_params(C=1 / (penalty * len(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the result instead, once
        model.fit(x, labels)
    return bool(model.n_iter_.max() < model.max_iter)
