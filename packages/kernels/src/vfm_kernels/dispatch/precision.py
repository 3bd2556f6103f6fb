"""The dtype of losses and statistics."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Convert to fp32, unless the dtype is wider: half precision is for activations, not for losses."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
