"""Gradients of attention without atomics. One program sums each block of gradients, always in the same order."""
# mypy: ignore-errors

import triton
import triton.language as tl

from vfm_kernels.triton.attention_parts import head_at, load_rows, rotated, sequence, store_rows, table_rows


@triton.jit
def attention_delta_kernel(
    out,
    d_out,
    delta,
    num_tokens,
    d_batch,
    d_token,
    d_head,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Compute for each query the sum of its output times the output's gradient, for the gradient of the softmax."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    d_token, d_head = d_token // ALIGN * ALIGN, d_head // ALIGN * ALIGN
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    out += (batch * num_tokens * NUM_HEADS + head) * WIDTH
    o = load_rows(out, rows, NUM_HEADS * WIDTH, num_tokens, 0, BLOCK_WIDTH, WIDTH, True)
    d_out += batch * d_batch + head * d_head
    d_o = load_rows(d_out, rows, d_token, num_tokens, 0, BLOCK_WIDTH, WIDTH, True)
    delta += (batch * NUM_HEADS + head) * num_tokens
    tl.store(delta + rows, tl.sum(o * d_o, axis=1), mask=rows < num_tokens)


@triton.jit
def attention_backward_kernel(
    q,
    k,
    v,
    d_out,
    lse,
    delta,
    d_q,
    d_k,
    d_v,
    cu_seqlens,
    sin,
    cos,
    positions,
    num_tokens,
    num_prefix_tokens,
    scale,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    d_batch,
    d_token,
    d_head,
    grad_batch,
    grad_token,
    grad_head,
    table_batch,
    table_row,
    table_pair,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    CAUSAL: tl.constexpr,
    VARLEN: tl.constexpr,
    ROPE: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
):
    """Compute the gradients of a block of tokens in each program.

    The block is taken first as keys, whose gradients sum over all queries, and then as queries. The weights are
    computed twice, with seven products instead of five. In return, no two programs add to the same gradient. With RoPE,
    `q` and `k` are already rotated, and their gradients are rotated back before they are stored.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    block, head = tl.program_id(0), tl.program_id(1)
    batch, first, length = sequence(cu_seqlens, tl.program_id(2), num_tokens, VARLEN)
    if block * BLOCK >= length:
        return
    # Triton specialises integer arguments on divisibility by 16 only; a head of 88, a multiple of 8, would be loaded
    # element by element. As a multiple of ALIGN, the compiler sees rows of 16 aligned bytes.
    q_token, q_head = q_token // ALIGN * ALIGN, q_head // ALIGN * ALIGN
    k_token, k_head = k_token // ALIGN * ALIGN, k_head // ALIGN * ALIGN
    v_token, v_head = v_token // ALIGN * ALIGN, v_head // ALIGN * ALIGN
    d_token, d_head = d_token // ALIGN * ALIGN, d_head // ALIGN * ALIGN
    grad_token, grad_head = grad_token // ALIGN * ALIGN, grad_head // ALIGN * ALIGN
    q = head_at(q, batch, first, head, q_batch, q_token, q_head)
    k = head_at(k, batch, first, head, k_batch, k_token, k_head)
    v = head_at(v, batch, first, head, v_batch, v_token, v_head)
    d_out = head_at(d_out, batch, first, head, d_batch, d_token, d_head)
    d_q = head_at(d_q, batch, first, head, grad_batch, grad_token, grad_head)
    d_k = head_at(d_k, batch, first, head, grad_batch, grad_token, grad_head)
    d_v = head_at(d_v, batch, first, head, grad_batch, grad_token, grad_head)
    statistics = (batch * NUM_HEADS + head) * num_tokens + first
    lse, delta = lse + statistics, delta + statistics
    mine = block * BLOCK + tl.arange(0, BLOCK)
    if ROPE:
        sin, cos = sin + batch * table_batch, cos + batch * table_batch
        my_rows = table_rows(positions, batch, first + mine, num_tokens, num_prefix_tokens, HAS_POSITIONS)

    # The block as keys. Scores are transposed, so that both gradients are products with the block's rows first, without
    # a transposition of the weights. A row beyond the end may overflow; it is not stored, and no other row reads it.
    k1 = load_rows(k, mine, k_token, length, 0, WIDTH_1, WIDTH, UPCAST)
    v1 = load_rows(v, mine, v_token, length, 0, WIDTH_1, WIDTH, UPCAST)
    d_k1, d_v1 = tl.zeros((BLOCK, WIDTH_1), tl.float32), tl.zeros((BLOCK, WIDTH_1), tl.float32)
    if WIDTH_2 > 0:
        k2 = load_rows(k, mine, k_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
        v2 = load_rows(v, mine, v_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
        d_k2, d_v2 = tl.zeros((BLOCK, WIDTH_2), tl.float32), tl.zeros((BLOCK, WIDTH_2), tl.float32)
    # Earlier queries do not see this block's keys. Rounded down to a whole block.
    from_query = block * BLOCK // BLOCK_OTHER * BLOCK_OTHER if CAUSAL else 0
    for start in range(from_query, length, BLOCK_OTHER):
        queries = start + tl.arange(0, BLOCK_OTHER)
        q1 = load_rows(q, queries, q_token, length, 0, WIDTH_1, WIDTH, UPCAST)
        d_o1 = load_rows(d_out, queries, d_token, length, 0, WIDTH_1, WIDTH, UPCAST)
        scores_t = tl.dot(k1, tl.trans(q1), input_precision=PRECISION)
        d_p_t = tl.dot(v1, tl.trans(d_o1), input_precision=PRECISION)
        if WIDTH_2 > 0:
            q2 = load_rows(q, queries, q_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            d_o2 = load_rows(d_out, queries, d_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            scores_t = tl.dot(k2, tl.trans(q2), scores_t, input_precision=PRECISION)
            d_p_t = tl.dot(v2, tl.trans(d_o2), d_p_t, input_precision=PRECISION)
        # A query beyond the end gets an infinite log-sum, so its weights are zero without a mask of the scores.
        lse_t = tl.load(lse + queries, mask=queries < length, other=float("inf"))
        delta_t = tl.load(delta + queries, mask=queries < length, other=0.0)
        p_t = tl.exp2(scores_t * (scale * LOG2_E) - lse_t[None, :])
        if CAUSAL:
            p_t = tl.where(mine[:, None] <= queries[None, :], p_t, 0.0)
        d_scores_t = (p_t * (d_p_t - delta_t[None, :])).to(q1.dtype)
        p_t = p_t.to(d_o1.dtype)
        d_v1 = tl.dot(p_t, d_o1, d_v1, input_precision=PRECISION)
        d_k1 = tl.dot(d_scores_t, q1, d_k1, input_precision=PRECISION)
        if WIDTH_2 > 0:
            d_v2 = tl.dot(p_t, d_o2, d_v2, input_precision=PRECISION)
            d_k2 = tl.dot(d_scores_t, q2, d_k2, input_precision=PRECISION)
    d_k1 *= scale
    if ROPE:
        d_k1 = rotated(d_k1, my_rows, sin, cos, table_row, table_pair, 0, WIDTH, True)
    store_rows(d_k, d_k1, mine, grad_token, length, 0, WIDTH_1, WIDTH)
    store_rows(d_v, d_v1, mine, grad_token, length, 0, WIDTH_1, WIDTH)
    if WIDTH_2 > 0:
        d_k2 *= scale
        if ROPE:
            d_k2 = rotated(d_k2, my_rows, sin, cos, table_row, table_pair, WIDTH_1, WIDTH, True)
        store_rows(d_k, d_k2, mine, grad_token, length, WIDTH_1, WIDTH_2, WIDTH)
        store_rows(d_v, d_v2, mine, grad_token, length, WIDTH_1, WIDTH_2, WIDTH)

    # The block as queries. The names are new because the compiler needs one shape for each name.
    my_q1 = load_rows(q, mine, q_token, length, 0, WIDTH_1, WIDTH, UPCAST)
    my_d_o1 = load_rows(d_out, mine, d_token, length, 0, WIDTH_1, WIDTH, UPCAST)
    d_q1 = tl.zeros((BLOCK, WIDTH_1), tl.float32)
    if WIDTH_2 > 0:
        my_q2 = load_rows(q, mine, q_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
        my_d_o2 = load_rows(d_out, mine, d_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
        d_q2 = tl.zeros((BLOCK, WIDTH_2), tl.float32)
    my_lse = tl.load(lse + mine, mask=mine < length, other=float("inf"))
    my_delta = tl.load(delta + mine, mask=mine < length, other=0.0)
    end = tl.minimum(length, (block + 1) * BLOCK) if CAUSAL else length
    for start in range(0, end, BLOCK_OTHER):
        keys = start + tl.arange(0, BLOCK_OTHER)
        key1 = load_rows(k, keys, k_token, length, 0, WIDTH_1, WIDTH, UPCAST)
        value1 = load_rows(v, keys, v_token, length, 0, WIDTH_1, WIDTH, UPCAST)
        scores = tl.dot(my_q1, tl.trans(key1), input_precision=PRECISION)
        d_p = tl.dot(my_d_o1, tl.trans(value1), input_precision=PRECISION)
        if WIDTH_2 > 0:
            key2 = load_rows(k, keys, k_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            value2 = load_rows(v, keys, v_token, length, WIDTH_1, WIDTH_2, WIDTH, UPCAST)
            scores = tl.dot(my_q2, tl.trans(key2), scores, input_precision=PRECISION)
            d_p = tl.dot(my_d_o2, tl.trans(value2), d_p, input_precision=PRECISION)
        seen = (keys < length)[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= mine[:, None])
        # A key beyond the end scores 0, whose weight would overflow if the row's other scores are far below, so it is
        # masked before the power.
        p = tl.exp2(tl.where(seen, scores * (scale * LOG2_E) - my_lse[:, None], float("-inf")))
        d_scores = (p * (d_p - my_delta[:, None])).to(key1.dtype)
        d_q1 = tl.dot(d_scores, key1, d_q1, input_precision=PRECISION)
        if WIDTH_2 > 0:
            d_q2 = tl.dot(d_scores, key2, d_q2, input_precision=PRECISION)
    d_q1 *= scale
    if ROPE:
        d_q1 = rotated(d_q1, my_rows, sin, cos, table_row, table_pair, 0, WIDTH, True)
    store_rows(d_q, d_q1, mine, grad_token, length, 0, WIDTH_1, WIDTH)
    if WIDTH_2 > 0:
        d_q2 *= scale
        if ROPE:
            d_q2 = rotated(d_q2, my_rows, sin, cos, table_row, table_pair, WIDTH_1, WIDTH, True)
        store_rows(d_q, d_q2, mine, grad_token, length, WIDTH_1, WIDTH_2, WIDTH)
