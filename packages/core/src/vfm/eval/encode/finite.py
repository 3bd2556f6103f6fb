"""Check that the outputs of a model are finite, since a score computed from other values would be meaningless."""

# N items

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vfm.base import UserError

MAX_CHARACTERS = 200  # of a text in the error message


def check_finite(values: Any, model: str, names: Sequence[str]) -> None:
    """Check that a model's outputs are finite.

    Args:
        values: Features, logits or scores of N items, as a tensor or an array, (N, ...).
        model: Name of the model.
        names: Names of the items, for the message.

    Raises:
        UserError: If an output is NaN or infinite. The message names the model and the first such item.
    """
    finite = torch.isfinite(torch.as_tensor(values))
    finite = finite.flatten(1).all(dim=1) if finite.ndim > 1 else finite
    if finite.all():
        return
    wrong = (~finite).nonzero().flatten().tolist()
    first = names[wrong[0]]
    shown = first if len(first) <= MAX_CHARACTERS else f"{first[:MAX_CHARACTERS]}..."
    raise UserError(
        f"{model}: expected finite outputs, got NaN or infinity for {shown!r} ({len(wrong)} of {len(names)} in its"
        " batch); the weights may be damaged, or too large for their precision"
    )
