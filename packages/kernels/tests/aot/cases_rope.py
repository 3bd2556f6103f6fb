"""RoPE at the shapes of EVA-02-L and at head widths that are not multiples of 16."""

import torch

from vfm_kernels.triton import rotate_into


def run(width: int, num_heads: int) -> None:
    heads = torch.empty(256, 257, num_heads, width, dtype=torch.bfloat16, device="meta")
    sin, cos = (torch.empty(256, width // 2, device="meta").expand(256, -1, -1) for _ in range(2))
    positions = torch.empty(256, 257, dtype=torch.int64, device="meta")
    rotate_into(heads, heads, sin, cos, 1, None)
    rotate_into(heads, heads, sin, cos, 1, positions, inverse=True)


CASES = {
    "heads of 64": ("rotate", 64, lambda: run(64, 16)),
    "heads of 88": ("rotate", 88, lambda: run(88, 16)),
    "heads of 128": ("rotate", 128, lambda: run(128, 32)),
}
