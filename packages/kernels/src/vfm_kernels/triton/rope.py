"""2-D rotary position embedding of the heads of a token, in place or into another buffer."""
# mypy: ignore-errors

# T tokens of a block, H heads of a block, P pairs of a head

import triton
import triton.language as tl


@triton.jit
def rope_kernel(
    source,
    target,
    sin,
    cos,
    positions,
    num_tokens,
    num_heads,
    num_rotated,
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
    """Pair (x0, x1) of a head becomes (x0 cos - x1 sin, x1 cos + x0 sin); heads from `num_rotated` on are copied."""
    batch = tl.program_id(2).to(tl.int64)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    pairs, channels = tl.arange(0, BLOCK_PAIRS), tl.arange(0, 2 * BLOCK_PAIRS)
    if HAS_POSITIONS:
        rows = tl.load(positions + batch * positions_batch + tokens, mask=tokens < num_tokens, other=-1)
    else:
        rows = tl.where(tokens < num_tokens, tokens - num_prefix_tokens, -1)
    turned = (rows >= 0)[:, None, None] & (heads < num_rotated)[None, :, None] & (pairs < PAIRS)[None, None, :]
    angle = batch * table_batch + rows[:, None, None] * table_row + pairs[None, None, :] * table_pair  # (T, 1, P)
    s = tl.load(sin + angle, mask=turned, other=0.0).to(tl.float32)  # (T, H, P)
    c = tl.load(cos + angle, mask=turned, other=1.0).to(tl.float32)
    if INVERSE:
        s = -s
    inside = (tokens < num_tokens)[:, None, None] & (heads < num_heads)[None, :, None]
    inside = inside & (channels < 2 * PAIRS)[None, None, :]
    # Triton knows of an integer that 16 divides it, or nothing. Not so a head of 72, 88 or 104, and loads would be of
    # single elements; written as a multiple of ALIGN, the compiler sees that rows are 16 bytes apart.
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
