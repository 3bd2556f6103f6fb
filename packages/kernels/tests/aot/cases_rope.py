"""RoPE at the shapes of EVA-02-L and at the head widths that are no multiple of 16."""

import torch

from vfm_kernels.launch.rope import rotate_into


def run(width: int, num_heads: int) -> None:
    qkv = torch.empty(256, 257, 3 * num_heads, width, dtype=torch.bfloat16, device="meta")
    sin, cos = (torch.empty(256, width // 2, device="meta").expand(256, -1, -1) for _ in range(2))
    positions = torch.empty(256, 257, dtype=torch.int64, device="meta")
    rotate_into(qkv, qkv, sin, cos, 2 * num_heads, 1, None)
    rotate_into(qkv, qkv, sin, cos, 2 * num_heads, 1, positions, inverse=True)


CASES = {
    "heads of 64": ("rope_2d", 64, lambda: run(64, 16)),
    "heads of 88": ("rope_2d", 88, lambda: run(88, 16)),
    "heads of 128": ("rope_2d", 128, lambda: run(128, 32)),
}
