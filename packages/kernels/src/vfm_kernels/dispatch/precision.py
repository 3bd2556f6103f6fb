"""The dtype of losses and statistics."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Convert a tensor to fp32, unless its dtype is wider.

    Losses are computed in this precision. Half precision is for activations.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
