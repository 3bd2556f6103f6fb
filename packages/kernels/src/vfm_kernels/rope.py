"""2-D rotary position embedding (EVA-02), in place on the heads of packed queries, keys and values."""

# B batch, N tokens, G heads of q, k and v together, D width of a head, P positions of the table

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vfm_kernels.dispatch import fused, runs_triton
from vfm_kernels.library import define


def rope_2d(
    heads: Tensor,
    sin: Tensor,
    cos: Tensor,
    *,
    num_rotated: int | None = None,
    num_prefix_tokens: int = 0,
    positions: Tensor | None = None,
) -> Tensor:
    """Rotates the channel pairs (0, 1), (2, 3), ... of queries and keys by their token's angles, in place.

    The rotation of timm's `Eva` for interleaved pairs. Packed queries, keys and values are one call:
    `rope_2d(qkv.view(B, N, 3 * H, D), sin, cos, num_rotated=2 * H)`. The backward rotates back, out of place.

    Args:
        heads: (B, N, G, D), D even and contiguous; overwritten, so it cannot be a leaf that requires a gradient.
        sin: (P, D / 2) or, for angles of each sample, (B, P, D / 2); not differentiated.
        cos: like `sin`.
        num_rotated: leading heads that are rotated, all by default; for packed input, those of q and k.
        num_prefix_tokens: leading tokens without a position (CLS, registers); token n has row n - num_prefix_tokens.
        positions: (B, N) integers in [0, P): each token's row of the table, for dropped patches; negative means none.

    Returns:
        `heads`.

    Raises:
        ValueError: shapes that do not fit.

    Source: Fang et al. 2023, EVA-02 (arXiv:2303.11331); Su et al. 2021, RoFormer (arXiv:2104.09864).
    """
    batch, num_tokens, num_heads, width = heads.shape
    num_rotated = num_heads if num_rotated is None else num_rotated
    if sin.shape != cos.shape or sin.shape[-1] * 2 != width or sin.ndim not in (2, 3):
        raise ValueError(f"sin is {tuple(sin.shape)}, cos {tuple(cos.shape)}; heads of {width} need (P, {width // 2})")
    if positions is None and sin.shape[-2] != num_tokens - num_prefix_tokens:
        raise ValueError(f"{num_tokens - num_prefix_tokens} tokens have positions, the table {sin.shape[-2]} rows")
    if positions is not None and positions.shape != (batch, num_tokens):
        raise ValueError(f"positions are {tuple(positions.shape)}; they must be {(batch, num_tokens)}")
    if not 0 <= num_rotated <= num_heads:
        raise ValueError(f"num_rotated is {num_rotated} of {num_heads} heads")
    sin, cos = (table.expand(batch, *table.shape[-2:]) for table in (sin, cos))  # stride 0 where all samples share
    if not fused(heads):
        queries_and_keys = heads[:, :, :num_rotated]
        rotated = rotate(queries_and_keys, sin, cos, num_rotated, num_prefix_tokens, positions)
        queries_and_keys.copy_(rotated)
        return heads
    if heads.stride(-1) != 1:
        raise ValueError(f"heads have strides {heads.stride()}; the channels of a head must lie side by side")
    turned: Tensor = _Rotate.apply(heads, sin, cos, num_rotated, num_prefix_tokens, positions)  # type: ignore[no-untyped-call]
    return turned


def rotate(
    heads: Tensor,
    sin: Tensor,
    cos: Tensor,
    num_rotated: int,
    num_prefix_tokens: int,
    positions: Tensor | None,
    inverse: bool = False,
) -> Tensor:
    """The plain twin, into a buffer of its own: heads (B, N, G, D), tables (B, P, D / 2)."""
    batch, num_tokens, _, width = heads.shape
    if positions is None:
        positions = torch.arange(-num_prefix_tokens, num_tokens - num_prefix_tokens, device=heads.device)
        positions = positions.expand(batch, -1)
    has_position = (positions >= 0)[:, :, None]
    rows = positions.clamp(min=0).long()[:, :, None].expand(-1, -1, width // 2)
    s = torch.where(has_position, sin.gather(1, rows), 0.0)[:, :, None]  # (B, N, 1, D / 2)
    c = torch.where(has_position, cos.gather(1, rows), 1.0)[:, :, None]
    if inverse:
        s = -s
    x0, x1 = heads[:, :, :num_rotated, 0::2], heads[:, :, :num_rotated, 1::2]
    turned = torch.stack([x0 * c - x1 * s, x1 * c + x0 * s], dim=-1).flatten(-2).to(heads.dtype)
    return torch.cat([turned, heads[:, :, num_rotated:]], dim=2)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        heads: Tensor,
        sin: Tensor,
        cos: Tensor,
        num_rotated: int,
        num_prefix_tokens: int,
        positions: Tensor | None,
    ) -> Tensor:
        torch.ops.vfm_kernels.rope_2d_(heads, sin, cos, num_rotated, num_prefix_tokens, positions)
        ctx.mark_dirty(heads)
        ctx.save_for_backward(sin, cos, positions)
        ctx.num_rotated, ctx.num_prefix_tokens = num_rotated, num_prefix_tokens
        return heads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sin, cos, positions = ctx.saved_tensors
        back = torch.ops.vfm_kernels.rope_2d_inverse(grad, sin, cos, ctx.num_rotated, ctx.num_prefix_tokens, positions)
        return back, None, None, None, None, None


def _run_in_place(
    heads: Tensor, sin: Tensor, cos: Tensor, num_rotated: int, num_prefix_tokens: int, positions: Tensor | None
) -> None:
    if runs_triton(heads):
        from vfm_kernels.launch.rope import rotate_into

        queries_and_keys = heads[:, :, :num_rotated]
        rotate_into(queries_and_keys, queries_and_keys, sin, cos, num_rotated, num_prefix_tokens, positions)
    else:
        heads.copy_(rotate(heads, sin, cos, num_rotated, num_prefix_tokens, positions))


def _run_inverse(
    grad: Tensor, sin: Tensor, cos: Tensor, num_rotated: int, num_prefix_tokens: int, positions: Tensor | None
) -> Tensor:
    if not runs_triton(grad):
        return rotate(grad, sin, cos, num_rotated, num_prefix_tokens, positions, inverse=True)
    from vfm_kernels.launch.rope import rotate_into

    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    back = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    rotate_into(back, grad, sin, cos, num_rotated, num_prefix_tokens, positions, inverse=True)
    return back


define(
    "rope_2d_(Tensor(a!) heads, Tensor sin, Tensor cos, SymInt num_rotated, SymInt num_prefix_tokens,"
    " Tensor? positions) -> ()",
    _run_in_place,
    lambda *_: None,
)
define(
    "rope_2d_inverse(Tensor grad, Tensor sin, Tensor cos, SymInt num_rotated, SymInt num_prefix_tokens,"
    " Tensor? positions) -> Tensor",
    _run_inverse,
    lambda grad, *_: torch.empty(grad.shape, dtype=grad.dtype, device=grad.device),
)
