"""Train probes on frozen features with several learning rates at once, all on the same batches.

Sources: head and optimizer are from EVA's linear probe (Fang et al. 2022, arXiv:2211.07636), which has batch norm
without affine parameters and a linear layer, and trains with LARS or SGD without weight decay. The best of many rates
is chosen on a validation split as in DINOv2 (Oquab et al. 2023, arXiv:2304.07193). Features are computed once, so
images are not augmented.
"""

# N images, D width, C classes

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.statistics import average_precisions

Solver = Literal["sgd", "lars", "adamw"]
Rows = NDArray[np.int64]

LRS: dict[Solver, tuple[float, ...]] = {
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "lars": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}


def split_validation(labels: NDArray[np.integer], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split images into training and validation.

    A `fraction` of each class (rounded down) is held out, but at least one image if the class has two or more. The only
    image of a class is used for training.

    Args:
        labels: Class of each image, (N,).
        fraction: Share of the images to hold out.
        seed: Seed of the split.

    Returns:
        Indices of the training and of the validation images.

    Raises:
        UserError: If no class has a second image.
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        # By class, and at least one of each class that has two images.
        number = int(len(members) * fraction)
        if len(members) > 1:
            number = max(1, number)
        held_out.append(members[:number])
    validation = np.sort(np.concatenate(held_out))
    if not len(validation):
        raise UserError(
            "validation_fraction: no image can be held out, since each class has one training image; expected a class"
            " with two or more"
        )
    return np.setdiff1d(np.arange(len(labels)), validation), validation


class NormedLinearHead(nn.Module):
    """Batch norm without affine parameters, then a linear layer with weights of std 0.01."""

    def __init__(self, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Compute the score of each class, (B, D) to (B, C)."""
        scores: Tensor = self.linear(self.norm(features))
        return scores


@dataclass(frozen=True)
class ProbeSchedule:
    """Training schedule of the heads. The rate warms up over a tenth of the steps, then follows half a cosine."""

    solver: Solver
    lrs: tuple[float, ...]
    epochs: int
    batch_size: int
    seed: int = 0


@dataclass(frozen=True)
class Swept:
    """Result of a sweep over learning rates.

    It has the head of the best rate, retrained on all training images, and the validation score of each rate.
    """

    head: nn.Module
    lr: float
    validation: dict[float, float]


def sweep(
    make_head: Callable[[torch.Generator], nn.Module],
    features: Tensor,
    targets: Tensor,
    split: tuple[Rows, Rows],
    schedule: ProbeSchedule,
    device: torch.device,
) -> Swept:
    """Train a head per rate on the first part of `split`, choose the best rate on the second, and retrain on both.

    Among equally good rates the smallest is chosen.

    Args:
        make_head: Initialises a head from a generator.
        features: (N, ...), in memory or mapped from a file. Rows are read batch by batch.
        targets: The class of each image, (N,), or its labels, (N, C) bool.
        split: Indices of the training images and of the validation images.
        schedule: Rates, epochs and batch size.
        device: Device that the heads are trained on.
    """
    heads = [make_head(torch.Generator().manual_seed(schedule.seed)).to(device) for _ in schedule.lrs]
    train_heads(heads, schedule.lrs, features, targets, split[0], schedule)
    held_out = targets[torch.from_numpy(split[1])]
    validation = {}
    for lr, head in zip(schedule.lrs, heads, strict=True):
        validation[lr] = quality(head_scores(head, features, split[1]), held_out)
    best = max(sorted(validation), key=validation.__getitem__)  # the first among equals, which is the smallest rate
    # From the same initial weights as in the sweep, so that only the images differ.
    final = make_head(torch.Generator().manual_seed(schedule.seed)).to(device)
    train_heads([final], [best], features, targets, np.sort(np.concatenate(split)), schedule)
    return Swept(final, best, validation)


def train_heads(
    heads: Sequence[nn.Module],
    lrs: Sequence[float],
    features: Tensor,
    targets: Tensor,
    rows: Rows,
    schedule: ProbeSchedule,
) -> None:
    """Train each head with its rate, in place. All get the same batches, and their gradients do not mix.

    Args:
        heads: Heads to train.
        lrs: Peak learning rate of each head.
        features: Features of all images.
        targets: Targets of all images.
        rows: Images to train on.
        schedule: Steps, batch size and weight decay.
    """
    optimizers = [_optimizer(schedule.solver, head) for head in heads]
    device = next(heads[0].parameters()).device
    generator = np.random.default_rng(schedule.seed)
    per_epoch = max(1, min(math.ceil(len(rows) / schedule.batch_size), len(rows) // 2))  # batch norm needs two
    for step in range(schedule.epochs * per_epoch):
        if step % per_epoch == 0:
            order = generator.permutation(rows)
        batch = torch.from_numpy(np.sort(order[step % per_epoch :: per_epoch]))  # sorted, for reads from a file
        x = features[batch].to(device).float()
        y = targets[batch].to(device)
        # One backward pass for all heads. They share the features, which have no gradient, and nothing else.
        loss = torch.stack([objective(head(x), y) for head in heads]).sum()  # the gradients stay apart
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        factor = _rate_factor(step, schedule.epochs * per_epoch)
        for optimizer, lr in zip(optimizers, lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()


@torch.no_grad()
def head_scores(head: nn.Module, features: Tensor, rows: Rows, batch_size: int = 1024) -> NDArray[np.float32]:
    """Compute the scores of a head.

    Args:
        head: Trained head.
        features: Features of all images.
        rows: Images to score.
        batch_size: Images of a forward pass.

    Returns:
        (len(rows), C).
    """
    head.eval()
    device = next(head.parameters()).device
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = features[torch.from_numpy(rows[start : start + batch_size])]
        parts.append(head(batch.to(device).float()).float().cpu())
    scores: NDArray[np.float32] = torch.cat(parts).numpy()
    return scores


def objective(scores: Tensor, targets: Tensor) -> Tensor:
    """Compute cross-entropy for one class per image, (B,), or binary cross-entropy for several labels, (B, C)."""
    if targets.ndim == 1:
        return F.cross_entropy(scores, targets)
    return F.binary_cross_entropy_with_logits(scores, targets.float())


def quality(scores: NDArray[np.floating], targets: Tensor) -> float:
    """Compute accuracy for one class per image, or mean average precision for several labels."""
    if targets.ndim == 1:
        known = ~np.isnan(scores).any(axis=1)  # `argmax` takes NaN for the largest, as if it were an answer
        return float(np.mean(known & (scores.argmax(axis=1) == targets.numpy())))
    precisions = average_precisions(scores, targets.numpy())
    if np.isnan(precisions).all():
        return 0.0
    return float(np.nanmean(precisions))


def _optimizer(solver: Solver, head: nn.Module) -> torch.optim.Optimizer:
    kinds: dict[Solver, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        # The rate is set in each step, so the one given here is never used.
        "sgd": lambda params: torch.optim.SGD(params, lr=0.0, momentum=0.9),
        "lars": _lars,
        "adamw": lambda params: torch.optim.AdamW(params, lr=0.0, weight_decay=0.0),
    }
    return kinds[solver](list(head.parameters()))


def _lars(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Create LARS, in which matrices step by lr * 0.001 * |w| / |g| * g, and biases as in SGD."""
    # By default timm adapts only parameters with weight decay, and there is none here.
    matrices: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for param in params:
        kind = matrices if param.ndim > 1 else biases
        kind.append(param)
    groups = [{"params": matrices, "always_adapt": True}, {"params": biases}]
    optimizer: torch.optim.Optimizer = Lars(groups, lr=0.0, momentum=0.9)
    return optimizer


def _rate_factor(step: int, num_steps: int) -> float:
    """Compute the fraction of the peak rate.

    It is linear over the first tenth, then half a cosine to 0.
    """
    warmup = max(1, num_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
