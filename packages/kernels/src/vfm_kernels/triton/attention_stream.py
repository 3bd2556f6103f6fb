"""Attention of any number of tokens: a block of queries loops over blocks of keys with a running maximum."""
# mypy: ignore-errors

import triton
import triton.language as tl

from vfm_kernels.triton.attention_parts import head_at, load_rows, sequence, store_rows


@triton.jit
def attention_stream_kernel(
    q,
    k,
    v,
    out,
    lse,
    cu_seqlens,
    num_tokens,
    scale,  # times log2(e), because the hardware computes powers of two
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    CAUSAL: tl.constexpr,
    VARLEN: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Compute a block of queries of a sample's head in each program, as in FlashAttention-2."""
    block, head = tl.program_id(0), tl.program_id(1)
    batch, first, length = sequence(cu_seqlens, tl.program_id(2), num_tokens, VARLEN)
    if block * BLOCK_QUERIES >= length:
        return  # this sequence is shorter than the longest
    # Triton specialises integer arguments on divisibility by 16 only; a head of 88, a multiple of 8, would be loaded
    # element by element. As a multiple of ALIGN, the compiler sees rows of 16 aligned bytes.
    q_token, q_head = q_token // ALIGN * ALIGN, q_head // ALIGN * ALIGN
    k_token, k_head = k_token // ALIGN * ALIGN, k_head // ALIGN * ALIGN
    v_token, v_head = v_token // ALIGN * ALIGN, v_head // ALIGN * ALIGN
    q = head_at(q, batch, first, head, q_batch, q_token, q_head)
    k = head_at(k, batch, first, head, k_batch, k_token, k_head)
    v = head_at(v, batch, first, head, v_batch, v_token, v_head)
    out += ((batch * num_tokens + first) * NUM_HEADS + head) * WIDTH
    lse += (batch * NUM_HEADS + head) * num_tokens + first

    rows = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    q1 = load_rows(q, rows, q_token, length, 0, WIDTH_1, WIDTH, UPCAST)
    mixed1 = tl.zeros((BLOCK_QUERIES, WIDTH_1), tl.float32)
    if WIDTH_2 > 0:
        q2 = load_rows(q, rows, q_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
        mixed2 = tl.zeros((BLOCK_QUERIES, WIDTH_2), tl.float32)
    largest = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    end = tl.minimum(length, (block + 1) * BLOCK_QUERIES) if CAUSAL else length
    for start in range(0, end, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        k1 = load_rows(k, keys, k_token, length, 0, WIDTH_1, WIDTH, UPCAST)
        scores = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        if WIDTH_2 > 0:
            k2 = load_rows(k, keys, k_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            scores = tl.dot(q2, tl.trans(k2), scores, input_precision=PRECISION)
        seen = (keys < length)[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        # Every query sees key 0 of the first block, so no maximum is -inf and no difference is NaN.
        before, largest = largest, tl.maximum(largest, tl.max(scores, axis=1) * scale)
        p = tl.exp2(scores * scale - largest[:, None])
        # Sums so far were relative to a smaller maximum.
        shrink = tl.exp2(before - largest)
        total = total * shrink + tl.sum(p, axis=1)
        v1 = load_rows(v, keys, v_token, length, 0, WIDTH_1, WIDTH, UPCAST)
        p = p.to(v1.dtype)
        mixed1 = tl.dot(p, v1, mixed1 * shrink[:, None], input_precision=PRECISION)
        if WIDTH_2 > 0:
            v2 = load_rows(v, keys, v_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            mixed2 = tl.dot(p, v2, mixed2 * shrink[:, None], input_precision=PRECISION)
    store_rows(out, mixed1 / total[:, None], rows, NUM_HEADS * WIDTH, length, 0, WIDTH_1, WIDTH)
    if WIDTH_2 > 0:
        store_rows(out, mixed2 / total[:, None], rows, NUM_HEADS * WIDTH, length, WIDTH_1, WIDTH_2, WIDTH)
    tl.store(lse + rows, largest + tl.log2(total), mask=rows < length)
