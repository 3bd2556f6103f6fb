"""Few-shot classification: a softmax classifier from k images a class, pulled towards where it starts.

Where it starts is nothing, or the classifier that a text tower writes (zero-shot): then what k images cannot tell stays
what the words say. Protocol: Radford et al. 2021, CLIP, section 3.1.2 (arXiv:2103.00020), k images of each class drawn
several times; the start with words: Li et al. 2022, ELEVATER (arXiv:2204.08790).
"""

# N images, C classes, D width

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

Floats = NDArray[np.float64]


def draw_shots(labels: NDArray[np.integer], shots: int, seed: int) -> NDArray[np.int64]:
    """Places of `shots` images of each class, ascending; of a class that has fewer, all of them."""
    generator = np.random.default_rng([seed, shots])
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def fit_few_shot(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    start: NDArray[np.floating],
    *,
    penalty: float = 0.1,
    max_iter: int = 1000,
) -> Floats:
    """The weights W (C, D) of least mean cross-entropy of softmax(x W^T) + penalty / (2 C) * ||W - start||^2.

    The problem is convex, so there is one answer. In the mean over classes weights move by 2 / penalty at most,
    whatever C is, since the errors of an image's C probabilities add up to 2 at most.

    Args:
        features: unit vectors, (N, D).
        labels: (N,) integers in 0..C-1.
        start: (C, D); zeros make it plain logistic regression without an intercept.
        penalty: of what moves away from the start.
        max_iter: steps of L-BFGS.
    """
    x, origin = np.asarray(features, dtype=np.float64), np.asarray(start, dtype=np.float64)
    pull, rows = penalty / len(origin), np.arange(len(x))

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(origin.shape)
        logs = log_softmax(x @ weights.T, axis=1)
        error = np.exp(logs)
        error[rows, labels] -= 1
        moved = weights - origin
        gradient = error.T @ x / len(x) + pull * moved
        return float(-logs[rows, labels].mean() + pull / 2 * np.square(moved).sum()), gradient.ravel()

    options = {"maxiter": max_iter, "gtol": 1e-7 / len(origin), "ftol": 1e-13}
    found = minimize(loss_and_gradient, origin.ravel(), jac=True, method="L-BFGS-B", options=options)
    weights: Floats = found.x.reshape(origin.shape)
    return weights
