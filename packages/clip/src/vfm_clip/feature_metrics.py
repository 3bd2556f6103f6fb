"""Measure how much features differ, how similar pairs are, and how many pairs of a batch are repeated."""

# n samples of this process, N of all processes, D width, L context length

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vfm.train import Metrics
from vfm_clip.data import ClipInputs
from vfm_kernels import gather_with_grad


def feature_spread(image: Tensor, text: Tensor) -> Metrics:
    """Measure how much the features of each tower, (n, D), differ from one another."""
    towers = {"image": image, "text": text}
    metrics: Metrics = {}
    for tower, features in towers.items():
        metrics[f"train/mutual_cosine/{tower}"] = mutual_cosine(features)
    for tower, features in towers.items():
        metrics[f"train/effective_rank/{tower}"] = effective_rank(features)
    return metrics


def pair_similarity(image: Tensor, text: Tensor) -> Metrics:
    """Compute the mean cosine of matching pairs (an image and its text) and of non-matching pairs.

    Both inputs are unit vectors (n, D) of this process' samples. Another copy of the same text counts as wrong.
    """
    images = image.detach().float()
    texts = text.detach().float()
    num = len(image)
    right = (images * texts).sum()
    wrong = (images.sum(dim=0) * texts.sum(dim=0)).sum() - right  # over all pairs without the (n, n) matrix
    return {
        "train/similarity/right_pairs": right / num,
        "train/similarity/wrong_pairs": wrong / max(1, num * (num - 1)),
    }


def repeated_fractions(micro_batches: Sequence[ClipInputs]) -> Metrics:
    """Measure which fractions of this process' pairs have a caption, or a sample, that the global batch repeats.

    Samples are compared by `uid`, if the inputs have one.
    """
    # Hashes, since gathering tokens of all processes would take a hundred times the bytes.
    captions = []
    uids = []
    for inputs in micro_batches:
        captions.append(token_hash(inputs.tokens))
        if inputs.uid is not None:
            uids.append(inputs.uid)
    keys = {"captions": torch.cat(captions)}
    if uids:
        keys["samples"] = torch.cat(uids)
    return {f"train/repeated/{what}": repeated(local, gather_with_grad(local)) for what, local in keys.items()}


def mutual_cosine(features: Tensor) -> Tensor:
    """Compute the mean cosine of two different vectors.

    It is 0 for random vectors, and 1 if all are equal. A single vector gives 0.

    Args:
        features: Unit vectors, (n, D).
    """
    unit = features.detach().float()
    num = len(features)
    # The squared length of a sum of unit vectors is the sum of all their cosines, with n ones of a vector with itself.
    return (unit.sum(dim=0).square().sum() - num) / max(1, num * (num - 1))


def effective_rank(features: Tensor) -> Tensor:
    """Compute the effective rank of features (n, D), the participation ratio of their covariance.

    It is at most min(n - 1, D), for equal variance in all directions, and 0 if all features are equal.
    """
    with torch.autocast(features.device.type, enabled=False):
        centred = features.detach().float()
        centred = centred - centred.mean(dim=0)
        # The smaller of (D, D) and (n, n): both have the same nonzero eigenvalues.
        if centred.shape[1] < len(centred):
            gram = centred.T @ centred
        else:
            gram = centred @ centred.T
        # The square of the sum of eigenvalues by the sum of their squares, from traces, without an eigendecomposition.
        return gram.diagonal().sum().square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)


def repeated(local: Tensor, every: Tensor) -> Tensor:
    """Compute the fraction of values that occur more than once in the global batch.

    Args:
        local: Values of this process, (n,).
        every: Values of all processes, (N,), including `local`.
    """
    # Counted by two searches in sorted values: unlike `torch.unique` it needs no synchronisation with the device.
    ordered = every.sort().values
    count = torch.searchsorted(ordered, local, right=True) - torch.searchsorted(ordered, local)
    return (count > 1).float().mean()


def token_hash(tokens: Tensor) -> Tensor:
    """Hash each text to an int64, (n, L) to (n,)."""
    # The weights of the positions are computed on the device. A copy from the host would wait until the encoders,
    # which are queued before it, have run.
    weights = _mixed(torch.arange(1, tokens.shape[1] + 1, device=tokens.device))
    return (tokens.long() * weights).sum(dim=1)


def _mixed(counter: Tensor) -> Tensor:
    """Mix the bits of int64 numbers (the finalizer of SplitMix64, Steele et al. 2014, with signed shifts)."""
    mixed = counter * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
    return mixed ^ (mixed >> 31)
