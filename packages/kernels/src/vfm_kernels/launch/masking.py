"""Launches what draws masks."""

import torch
from torch import Tensor

from vfm_kernels.launch import block_of, launch, settings
from vfm_kernels.triton.masking import block_mask_kernel


def block_mask(seeds: Tensor, rows: int, columns: int, num_masked: int, min_block: int, exact: bool) -> Tensor:
    """The op `block_mask`: seeds (B,) int64, masks (B, rows * columns)."""
    num_patches = rows * columns
    masks = torch.empty(len(seeds), num_patches, dtype=torch.bool, device=seeds.device)
    numbers = (rows, columns, num_masked, min_block, num_patches)
    chosen = {"BLOCK": block_of(num_patches), **settings("block_mask", num_patches, seeds.device)}
    launch(block_mask_kernel, (len(seeds),), seeds.device, seeds.contiguous(), masks, *numbers, EXACT=exact, **chosen)
    return masks
