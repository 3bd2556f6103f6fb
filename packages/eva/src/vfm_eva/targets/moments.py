"""Mean and covariance of features that arrive in parts."""

# T width of the features

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vfm.plugin import UserError


def moments(parts: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Compute number, mean (T,) and covariance (T, T) of features (..., T). Sums are accumulated in fp64.

    Raises:
        UserError: If there are no features, since no image could be read.
    """
    count = 0
    total = torch.zeros(())
    products = torch.zeros(())
    for part in parts:
        rows = part.flatten(0, -2).double().cpu()
        count = count + len(rows)
        total = total + rows.sum(0)
        products = products + rows.T @ rows
    if not count:
        raise UserError("expected features of at least one image, got none")
    mean = total / count
    return count, mean, products / count - torch.outer(mean, mean)
