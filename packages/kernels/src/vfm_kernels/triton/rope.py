"""Kernel of the rotary position embedding of heads in two dimensions, in place or into another buffer."""
# mypy: ignore-errors

# In the kernel: T tokens of a block, H heads of a block, P pairs of a head

import triton
import triton.language as tl
from torch import Tensor

from vfm_kernels.triton.launch import block_of, launch, settings


@triton.jit
def rope_kernel(
    source,
    target,
    sin,
    cos,
    positions,
    num_tokens,
    num_heads,
    num_prefix_tokens,
    source_batch,
    source_token,
    source_head,
    target_batch,
    target_token,
    target_head,
    table_batch,
    table_row,
    table_pair,
    positions_batch,
    HAS_POSITIONS: tl.constexpr,
    INVERSE: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """Rotate each pair (x0, x1) of a head to (x0 cos - x1 sin, x1 cos + x0 sin).

    A program handles several heads of a token, because they share its angles.
    """
    batch = tl.program_id(2).to(tl.int64)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    pairs, channels = tl.arange(0, BLOCK_PAIRS), tl.arange(0, 2 * BLOCK_PAIRS)
    if HAS_POSITIONS:
        rows = tl.load(positions + batch * positions_batch + tokens, mask=tokens < num_tokens, other=-1)
    else:
        rows = tl.where(tokens < num_tokens, tokens - num_prefix_tokens, -1)
    rotated = (rows >= 0)[:, None, None] & (heads < num_heads)[None, :, None] & (pairs < PAIRS)[None, None, :]
    angle = batch * table_batch + rows[:, None, None] * table_row + pairs[None, None, :] * table_pair  # (T, 1, P)
    s = tl.load(sin + angle, mask=rotated, other=0.0).to(tl.float32)  # (T, H, P)
    c = tl.load(cos + angle, mask=rotated, other=1.0).to(tl.float32)
    if INVERSE:
        s = -s
    inside = (tokens < num_tokens)[:, None, None] & (heads < num_heads)[None, :, None]
    inside = inside & (channels < 2 * PAIRS)[None, None, :]
    # Triton specialises integer arguments on divisibility by 16 only; heads of 72, 88 or 104, multiples of 8, would be
    # loaded element by element. As a multiple of ALIGN, the compiler sees rows of 16 aligned bytes.
    source_token, source_head = source_token // ALIGN * ALIGN, source_head // ALIGN * ALIGN
    target_token, target_head = target_token // ALIGN * ALIGN, target_head // ALIGN * ALIGN
    x = tl.load(
        source
        + batch * source_batch
        + tokens[:, None, None] * source_token
        + heads[None, :, None] * source_head
        + channels[None, None, :],
        mask=inside,
        other=0.0,
    ).to(tl.float32)
    x0, x1 = tl.split(tl.reshape(x, (BLOCK_TOKENS, BLOCK_HEADS, BLOCK_PAIRS, 2)))
    y = tl.reshape(tl.join(x0 * c - x1 * s, x1 * c + x0 * s), (BLOCK_TOKENS, BLOCK_HEADS, 2 * BLOCK_PAIRS))
    tl.store(
        target
        + batch * target_batch
        + tokens[:, None, None] * target_token
        + heads[None, :, None] * target_head
        + channels[None, None, :],
        y.to(target.dtype.element_ty),
        mask=inside,
    )


def rotate_into(
    target: Tensor,
    source: Tensor,
    sin: Tensor,
    cos: Tensor,
    num_prefix_tokens: int,
    positions: Tensor | None,
    *,
    inverse: bool = False,
) -> None:
    """Rotate heads by a table of angles into a buffer.

    Args:
        target: (B, N, H, D). It may be `source`.
        source: (B, N, H, D).
        sin: (B, P, D / 2).
        cos: (B, P, D / 2).
        num_prefix_tokens: Leading tokens without a position.
        positions: Each token's row of the table, (B, N).
        inverse: Rotate back.
    """
    batch, num_tokens, num_heads, width = source.shape
    if source.stride(-1) != 1:
        source = source.contiguous()
    if positions is not None:
        positions = positions.contiguous()
    chosen = settings("rotate", width, source.device)
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
        num_prefix_tokens,
        *strides,
        *sin.stride(),
        num_tokens,
        HAS_POSITIONS=positions is not None,
        INVERSE=inverse,
        PAIRS=width // 2,
        BLOCK_PAIRS=block_of(width // 2),
        # Strides that are multiples of 8 allow wide loads.
        ALIGN=8 if all(stride % 8 == 0 for stride in strides) else 1,
        **chosen,
    )
