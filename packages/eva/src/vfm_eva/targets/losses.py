"""Losses of patch features besides EVA's cosine."""

# B batch, K patches, D width of the student, T width of the target

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["gram_loss", "mean_target", "squared_error"]


def gram_loss(tokens: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Compute the squared difference of the patches' cosines with one another, averaged over the pairs of each image.

    Images weigh by their counted patches, so the loss of a step does not depend on its micro-batches.

    Args:
        tokens: The student's patch tokens, (B, K, D).
        target: The teacher's patch features, (B, K, T).
        counted: (B, K) booleans.

    Source: Simeoni et al. 2025, DINOv3 (arXiv:2508.10104), section 4.2.
    """
    difference = _cosines(tokens) - _cosines(target)
    pairs = counted[:, :, None] & counted[:, None, :]
    counts = counted.sum(dim=1)
    of_image = difference.square().where(pairs, 0.0).sum(dim=(1, 2)) / counts.square().clamp(min=1)
    return (of_image * counts).sum() / counts.sum().clamp(min=1)


def squared_error(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Compute the squared error in fp32, averaged over the counted tokens and the channels.

    Args:
        prediction: (B, K, T).
        target: Like `prediction`.
        counted: (B, K), True for tokens that count.
    """
    error = (prediction.float() - target.float()).square().mean(dim=-1)  # (B, K)
    return torch.where(counted, error, 0.0).sum() / counted.sum().clamp(min=1)


def mean_target(target: Tensor, counted: Tensor) -> Tensor:
    """Compute the mean of the counted targets, expanded to the shape of the targets, (B, K, T)."""
    mean = (target * counted[..., None]).sum(dim=(0, 1)) / counted.sum().clamp(min=1)
    return mean.expand_as(target)


def _cosines(features: Tensor) -> Tensor:
    """Compute the cosine of every two patches of an image, (B, K, K), in fp32."""
    unit = F.normalize(features.float(), dim=-1)
    return unit @ unit.transpose(1, 2)
