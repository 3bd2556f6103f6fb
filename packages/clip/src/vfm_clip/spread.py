"""How far the features of a step differ from one another, and how many of its pairs are there twice: for diagnosis."""

# n samples of this process, N of all processes, D width, L context length

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vfm.train import Batch, Metrics
from vfm_kernels import gather_with_grad


def spread(image: Tensor, text: Tensor) -> Metrics:
    """How much the features of both towers differ, (n, D) each: the metrics of a step."""
    towers = {"image": image, "text": text}
    cosines = {f"train/mutual_cosine/{tower}": mutual_cosine(part) for tower, part in towers.items()}
    return cosines | {f"train/effective_rank/{tower}": effective_rank(part) for tower, part in towers.items()}


def repeats(micro_batches: Sequence[Batch]) -> Metrics:
    """The shares of this process' pairs whose caption, or whose sample, another pair of the whole batch has too.

    Samples are told apart by the batch's `uid`, (n,) of int64, where it has one.
    """
    told = {"captions": torch.cat([token_hash(batch["tokens"]) for batch in micro_batches])}
    if "uid" in micro_batches[0]:
        told["samples"] = torch.cat([batch["uid"] for batch in micro_batches])
    return {f"train/repeated/{what}": repeated(mine, gather_with_grad(mine)) for what, mine in told.items()}


def mutual_cosine(features: Tensor) -> Tensor:
    """The mean cosine of two different unit vectors of (n, D): 0 where they point anywhere, 1 where all are alike.

    A single vector gives 0.
    """
    unit, num = features.detach().float(), len(features)
    return (unit.sum(dim=0).square().sum() - num) / max(1, num * (num - 1))


def effective_rank(features: Tensor) -> Tensor:
    """In how many directions features differ, (n, D) to a scalar: the participation ratio of their covariance.

    It is at most min(n - 1, D), which they reach where they vary as much in every direction; 0 where all are alike.
    """
    with torch.autocast(features.device.type, enabled=False):
        centred = features.detach().float()
        centred = centred - centred.mean(dim=0)
        gram = centred.T @ centred if centred.shape[1] < len(centred) else centred @ centred.T
        return gram.diagonal().sum().square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)


def repeated(mine: Tensor, every: Tensor) -> Tensor:
    """The share of `mine`, (n,), that stands more than once in `every`, (N,), which has them too; without a sync."""
    ordered = every.sort().values
    count = torch.searchsorted(ordered, mine, right=True) - torch.searchsorted(ordered, mine)
    return (count > 1).float().mean()


def token_hash(tokens: Tensor) -> Tensor:
    """One whole number for each text, (n, L) to (n,) of int64; equal texts have equal ones."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randint(2**62, (tokens.shape[1],), generator=draw).to(tokens.device)
    return (tokens.long() * weights).sum(dim=1)
