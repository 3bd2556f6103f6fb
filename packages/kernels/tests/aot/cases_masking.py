"""Masks of a large batch, at 448 pixels."""

import torch

from vfm_kernels.launch import masking

SEEDS = torch.empty(4096, dtype=torch.int64, device="meta")

CASES = {
    name: ("block_mask", 1024, lambda exact=exact: masking.block_mask(SEEDS, 32, 32, 420, 64, exact))
    for name, exact in [("EVA's count", False), ("exact", True)]
}
