"""Attention of few tokens. A head's keys and values are loaded once, and registers hold whole rows of scores."""
# mypy: ignore-errors

import triton
import triton.language as tl

from vfm_kernels.triton.attention_parts import head_at, load_rows, rotated, store_rows, table_rows

TAIL = tl.constexpr(16)  # the smallest width of a tensor-core product


@triton.jit
def attention_short_kernel(
    q,
    k,
    v,
    out,
    lse,
    sin,
    cos,
    positions,
    num_tokens,
    num_prefix_tokens,
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
    table_batch,
    table_row,
    table_pair,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    HAS_TAIL: tl.constexpr,
    ROPE: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
):
    """Compute a head of a sample in each program.

    The keys are a block of NUM_KEYS and a tail of up to 16 (CLS, registers). 257 tokens as 256 and a tail cost 272
    columns, but 384 in tiles of 128. Whole rows of scores need no running maximum and no rescaling of the output.
    """
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # Triton specialises integer arguments on divisibility by 16 only; a head of 88, a multiple of 8, would be loaded
    # element by element. As a multiple of ALIGN, the compiler sees rows of 16 aligned bytes.
    q_token, q_head = q_token // ALIGN * ALIGN, q_head // ALIGN * ALIGN
    k_token, k_head = k_token // ALIGN * ALIGN, k_head // ALIGN * ALIGN
    v_token, v_head = v_token // ALIGN * ALIGN, v_head // ALIGN * ALIGN
    q = head_at(q, batch, 0, head, q_batch, q_token, q_head)
    k = head_at(k, batch, 0, head, k_batch, k_token, k_head)
    v = head_at(v, batch, 0, head, v_batch, v_token, v_head)
    out += (batch * num_tokens * NUM_HEADS + head) * WIDTH
    lse += (batch * NUM_HEADS + head) * num_tokens
    sin, cos = sin + batch * table_batch, cos + batch * table_batch

    keys, tail = tl.arange(0, NUM_KEYS), NUM_KEYS + tl.arange(0, TAIL)
    k1 = load_rows(k, keys, k_token, num_tokens, 0, WIDTH_1, WIDTH, UPCAST)
    v1 = load_rows(v, keys, v_token, num_tokens, 0, WIDTH_1, WIDTH, UPCAST)
    if ROPE:
        k_rows = table_rows(positions, batch, keys, num_tokens, num_prefix_tokens, HAS_POSITIONS)
        k1 = rotated(k1, k_rows, sin, cos, table_row, table_pair, 0, WIDTH, False).to(k1.dtype)
    if WIDTH_2 > 0:
        k2 = load_rows(k, keys, k_token, num_tokens, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
        v2 = load_rows(v, keys, v_token, num_tokens, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
        if ROPE:
            k2 = rotated(k2, k_rows, sin, cos, table_row, table_pair, WIDTH_1, WIDTH, False).to(k2.dtype)
    if HAS_TAIL:
        k1_tail = load_rows(k, tail, k_token, num_tokens, 0, WIDTH_1, WIDTH, UPCAST)
        v1_tail = load_rows(v, tail, v_token, num_tokens, 0, WIDTH_1, WIDTH, UPCAST)
        if ROPE:
            t_rows = table_rows(positions, batch, tail, num_tokens, num_prefix_tokens, HAS_POSITIONS)
            k1_tail = rotated(k1_tail, t_rows, sin, cos, table_row, table_pair, 0, WIDTH, False).to(k1_tail.dtype)
        if WIDTH_2 > 0:
            k2_tail = load_rows(k, tail, k_token, num_tokens, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            v2_tail = load_rows(v, tail, v_token, num_tokens, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            if ROPE:
                k2_tail = rotated(k2_tail, t_rows, sin, cos, table_row, table_pair, WIDTH_1, WIDTH, False)
                k2_tail = k2_tail.to(v2_tail.dtype)

    for start in range(0, num_tokens, BLOCK_QUERIES):
        rows = start + tl.arange(0, BLOCK_QUERIES)
        q1 = load_rows(q, rows, q_token, num_tokens, 0, WIDTH_1, WIDTH, UPCAST)
        if ROPE:
            q_rows = table_rows(positions, batch, rows, num_tokens, num_prefix_tokens, HAS_POSITIONS)
            q1 = rotated(q1, q_rows, sin, cos, table_row, table_pair, 0, WIDTH, False).to(q1.dtype)
        scores = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        if WIDTH_2 > 0:
            q2 = load_rows(q, rows, q_token, num_tokens, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            if ROPE:
                q2 = rotated(q2, q_rows, sin, cos, table_row, table_pair, WIDTH_1, WIDTH, False).to(q2.dtype)
            scores = tl.dot(q2, tl.trans(k2), scores, input_precision=PRECISION)
        if HAS_TAIL:
            of_tail = tl.dot(q1, tl.trans(k1_tail), input_precision=PRECISION)
            if WIDTH_2 > 0:
                of_tail = tl.dot(q2, tl.trans(k2_tail), of_tail, input_precision=PRECISION)
        if not HAS_TAIL:
            scores = tl.where((keys < num_tokens)[None, :], scores, float("-inf"))
        largest = tl.max(scores, axis=1)
        if HAS_TAIL:
            of_tail = tl.where((tail < num_tokens)[None, :], of_tail, float("-inf"))
            largest = tl.maximum(largest, tl.max(of_tail, axis=1))
        # The maximum is scaled, not the scores, for which the scale is a fused multiply-add in the exponent.
        largest *= scale
        p = tl.exp2(scores * scale - largest[:, None])
        total = tl.sum(p, axis=1)
        if HAS_TAIL:
            p_tail = tl.exp2(of_tail * scale - largest[:, None])
            total += tl.sum(p_tail, axis=1)
            p_tail = p_tail.to(v1.dtype)
        tl.store(lse + rows, largest + tl.log2(total), mask=rows < num_tokens)
        # One part after the other, and only after the sums are stored: all at once, heads of 88 spill registers.
        p = p.to(v1.dtype)
        mixed1 = tl.dot(p, v1, input_precision=PRECISION)
        if HAS_TAIL:
            mixed1 = tl.dot(p_tail, v1_tail, mixed1, input_precision=PRECISION)
        store_rows(out, mixed1 / total[:, None], rows, NUM_HEADS * WIDTH, num_tokens, 0, WIDTH_1, WIDTH)
        if WIDTH_2 > 0:
            mixed2 = tl.dot(p, v2, input_precision=PRECISION)
            if HAS_TAIL:
                mixed2 = tl.dot(p_tail, v2_tail, mixed2, input_precision=PRECISION)
            store_rows(out, mixed2 / total[:, None], rows, NUM_HEADS * WIDTH, num_tokens, WIDTH_1, WIDTH_2, WIDTH)
