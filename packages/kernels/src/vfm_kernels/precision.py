"""The dtype in which losses are computed."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or as it is if it is wider: half precision is for activations, not for losses."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
