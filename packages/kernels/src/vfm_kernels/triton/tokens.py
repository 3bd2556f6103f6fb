"""Tokens taken out by an index, and put back."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def gather_tokens_kernel(tokens, index, out, num_kept, width, tokens_batch, tokens_token, BLOCK: tl.constexpr):
    """One program a kept token."""
    kept, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    row = batch * num_kept + kept
    token = tl.load(index + row)
    x = tl.load(tokens + batch * tokens_batch + token * tokens_token + columns, mask=inside, other=0.0)
    tl.store(out + row * width + columns, x, mask=inside)


@triton.jit
def scatter_tokens_kernel(
    tokens,
    index,
    fill,
    out,
    num_kept,
    num_tokens,
    width,
    tokens_batch,
    tokens_token,
    fill_batch,
    fill_token,
    fill_channel,
    HAS_FILL: tl.constexpr,
    BLOCK_KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a token of the result: the sum of all that the index sends there, in its order, or the fill.

    It looks itself up in the index, so nothing is zeroed first, no inverse is built, and no atomics are needed.
    """
    token, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, kept = tl.arange(0, BLOCK), tl.arange(0, BLOCK_KEPT)
    inside = columns < width
    place = tl.load(index + batch * num_kept + kept, mask=kept < num_kept, other=-1)
    sources = tl.where(place == token, kept, BLOCK_KEPT)
    source = tl.min(sources, axis=0)
    x = tl.zeros((BLOCK,), tl.float32)
    if HAS_FILL:  # noqa: SIM102  (decided when it is compiled, the next one when it runs)
        if source == BLOCK_KEPT:
            at = fill + batch * fill_batch + token * fill_token
            x = tl.load(at + columns * fill_channel, mask=inside, other=0.0).to(tl.float32)
    while source < BLOCK_KEPT:
        at = tokens + batch * tokens_batch + source * tokens_token
        x += tl.load(at + columns, mask=inside, other=0.0).to(tl.float32)
        source = tl.min(tl.where(sources > source, sources, BLOCK_KEPT), axis=0)
    row = batch * num_tokens + token
    tl.store(out + row * width + columns, x.to(out.dtype.element_ty), mask=inside)
