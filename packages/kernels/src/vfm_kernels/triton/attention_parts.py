"""Functions for sequences, rows of heads, products over a split width and RoPE that the attention kernels share.

A head of 72, 80 or 88 channels is split into two parts of 64 and 16 or 32. Padded to 128, the next power of two, it
would waste a third of the products and of the shared memory. `WIDTH_2` is 0 for a head in one part.
"""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def sequence(cu_seqlens, sample, num_tokens, VARLEN: tl.constexpr):
    """Locate a sample in a batch, or in one long row of sequences.

    Returns:
        Its batch index, first token and length.
    """
    if VARLEN:
        first = tl.load(cu_seqlens + sample).to(tl.int32)
        # Not the constant 0, which could not be converted to int64 below.
        batch, length = sample * 0, tl.load(cu_seqlens + sample + 1).to(tl.int32) - first
    else:
        batch, first, length = sample, sample * 0, num_tokens
    return batch.to(tl.int64), first.to(tl.int64), length


@triton.jit
def head_at(heads, batch, first, head, of_batch, of_token, of_head):
    """Compute the address of a sample's first token in (B, N, H, D)."""
    return heads + batch * of_batch + first * of_token + head * of_head


@triton.jit
def load_rows(
    at, rows, of_row, length, FROM: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr, UPCAST: tl.constexpr
):
    """Load channels [FROM, FROM + PART) of rows, with zeros beyond the length and the width."""
    channels = FROM + tl.arange(0, PART)
    inside = (rows < length)[:, None] & (channels < WIDTH)[None, :]
    x = tl.load(at + rows[:, None] * of_row + channels[None, :], mask=inside, other=0.0)
    return x.to(tl.float32) if UPCAST else x  # the interpreter cannot multiply bf16


@triton.jit
def store_rows(at, x, rows, of_row, length, FROM: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    """Store channels [FROM, FROM + PART) of rows without the padding."""
    channels = FROM + tl.arange(0, PART)
    inside = (rows < length)[:, None] & (channels < WIDTH)[None, :]
    tl.store(at + rows[:, None] * of_row + channels[None, :], x.to(at.dtype.element_ty), mask=inside)


@triton.jit
def table_rows(positions, batch, tokens, num_tokens, num_prefix_tokens, HAS_POSITIONS: tl.constexpr):
    """Look up each token's row of the table of angles. A negative row means no angle."""
    if HAS_POSITIONS:
        return tl.load(positions + batch * num_tokens + tokens, mask=tokens < num_tokens, other=-1).to(tl.int32)
    else:
        return tl.where(tokens < num_tokens, tokens - num_prefix_tokens, -1)


@triton.jit
def rotated(x, rows, sin, cos, of_row, of_pair, FROM: tl.constexpr, WIDTH: tl.constexpr, INVERSE: tl.constexpr):
    """Rotate each pair (x0, x1) of rows to (x0 cos - x1 sin, x1 cos + x0 sin), or back, in fp32."""
    PAIRS: tl.constexpr = x.shape[1] // 2
    pairs = FROM // 2 + tl.arange(0, PAIRS)
    placed = (rows >= 0)[:, None] & (pairs < WIDTH // 2)[None, :]
    angle = rows[:, None] * of_row + pairs[None, :] * of_pair
    s = tl.load(sin + angle, mask=placed, other=0.0).to(tl.float32)
    c = tl.load(cos + angle, mask=placed, other=1.0).to(tl.float32)
    if INVERSE:
        s = -s
    x0, x1 = tl.split(tl.reshape(x.to(tl.float32), (x.shape[0], PAIRS, 2)))
    return tl.reshape(tl.join(x0 * c - x1 * s, x1 * c + x0 * s), x.shape)
