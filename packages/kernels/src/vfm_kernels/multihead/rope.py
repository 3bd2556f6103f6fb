"""Two-dimensional rotary position embedding (EVA-02) of queries and keys, for attention that takes no angles."""

# B batch, N tokens, H heads, D width of a head, P positions of the table

from typing import Any

import torch
from torch import Tensor

from vfm_kernels.dispatch.dispatch import fused, launchers, runs_triton
from vfm_kernels.dispatch.library import Op


def rotate(heads: Tensor, sin: Tensor, cos: Tensor, num_prefix_tokens: int, positions: Tensor | None) -> Tensor:
    """Rotate the channel pairs (0, 1), (2, 3), ... of each head by its token's angles.

    This is the rotation of timm's `Eva` for interleaved pairs. The gradient is rotated back.

    Args:
        heads: (B, N, H, D), D even.
        sin: (B, P, D / 2), stride 0 over the batch where all samples share a table. Not differentiated.
        cos: Like `sin`.
        num_prefix_tokens: Leading tokens without a position (CLS, registers). Token n has row n - num_prefix_tokens.
        positions: (B, N) integers below P: each token's row of the table, for dropped patches. Negative: no position.

    Returns:
        (B, N, H, D) in the dtype of `heads`.

    Source: Fang et al. 2023, EVA-02 (arXiv:2303.11331). Su et al. 2021, RoFormer (arXiv:2104.09864).
    """
    if not fused("rotate", heads):
        return rotate_plain(heads, sin, cos, num_prefix_tokens, positions)
    rotated: Tensor = _ROTATE(heads, sin, cos, num_prefix_tokens, positions, False)
    return rotated


def rotate_plain(
    heads: Tensor, sin: Tensor, cos: Tensor, num_prefix_tokens: int, positions: Tensor | None, inverse: bool = False
) -> Tensor:
    """Rotate heads in plain torch.

    Args:
        heads: (B, N, H, D).
        sin: As for `rotate`.
        cos: As for `rotate`.
        num_prefix_tokens: Leading tokens without a position.
        positions: As for `rotate`.
        inverse: Rotate back.
    """
    batch, num_tokens, _, width = heads.shape
    if positions is None:
        # Negative for prefix tokens (CLS, registers), which have no place in the image and are not rotated.
        positions = torch.arange(-num_prefix_tokens, num_tokens - num_prefix_tokens, device=heads.device)
        positions = positions.expand(batch, -1)
    has_position = (positions >= 0)[:, :, None]
    rows = positions.clamp(min=0).long()[:, :, None].expand(-1, -1, width // 2)
    s = torch.where(has_position, sin.gather(1, rows), 0.0)[:, :, None]  # (B, N, 1, D / 2)
    c = torch.where(has_position, cos.gather(1, rows), 1.0)[:, :, None]
    if inverse:
        s = -s
    x0, x1 = heads[..., 0::2], heads[..., 1::2]
    return torch.stack([x0 * c - x1 * s, x1 * c + x0 * s], dim=-1).flatten(-2).to(heads.dtype)


def _run(
    heads: Tensor, sin: Tensor, cos: Tensor, num_prefix_tokens: int, positions: Tensor | None, inverse: bool
) -> Tensor:
    if not runs_triton(heads):
        return rotate_plain(heads, sin, cos, num_prefix_tokens, positions, inverse)
    target = _fake(heads)
    launchers().rotate_into(target, heads, sin, cos, num_prefix_tokens, positions, inverse=inverse)
    return target


def _fake(heads: Tensor, *_: Any) -> Tensor:
    return torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, sin, cos, ctx.num_prefix_tokens, positions, ctx.inverse = inputs
    ctx.save_for_backward(sin, cos, positions)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    sin, cos, positions = ctx.saved_tensors
    # A rotation is orthogonal: its gradient is the rotation by the opposite angles.
    back = _ROTATE(grad, sin, cos, ctx.num_prefix_tokens, positions, not ctx.inverse)
    return back, None, None, None, None, None


_ROTATE = Op(
    "rotate(Tensor heads, Tensor sin, Tensor cos, SymInt num_prefix_tokens, Tensor? positions, bool inverse) -> Tensor",
    _run,
    _fake,
)
_ROTATE.differentiate(_backward, _keep)
