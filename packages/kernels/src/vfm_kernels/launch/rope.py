"""Launches the rotation of heads."""

from torch import Tensor

from vfm_kernels.launch import block_of, launch, settings
from vfm_kernels.triton.rope import rope_kernel


def rotate_into(
    target: Tensor,
    source: Tensor,
    sin: Tensor,
    cos: Tensor,
    num_rotated: int,
    num_prefix_tokens: int,
    positions: Tensor | None,
    *,
    inverse: bool = False,
) -> None:
    """Heads of `source` (B, N, G, D), turned by tables (B, P, D / 2), into `target`, which may be `source`."""
    batch, num_tokens, num_heads, width = source.shape
    if positions is not None:
        positions = positions.contiguous()
    chosen = settings("rope_2d", width, source.device)
    grid = (-(-num_tokens // chosen["BLOCK_TOKENS"]), -(-num_heads // chosen["BLOCK_HEADS"]), batch)
    strides = (*source.stride()[:3], *target.stride()[:3])
    launch(
        rope_kernel,
        grid,
        source.device,
        source,
        target,
        sin,
        cos,
        positions,
        num_tokens,
        num_heads,
        num_rotated,
        num_prefix_tokens,
        *strides,
        *sin.stride(),
        num_tokens,
        HAS_POSITIONS=positions is not None,
        INVERSE=inverse,
        PAIRS=width // 2,
        BLOCK_PAIRS=block_of(width // 2),
        ALIGN=8 if all(stride % 8 == 0 for stride in strides) else 1,
        **chosen,
    )
