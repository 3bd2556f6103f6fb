"""All pairs of two sets: statistics of logits that are never stored, and losses of rows of logits in place."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def pair_log_sum_exp_kernel(
    queries,
    keys,
    scale,
    row_sums,
    column_sums,
    num_queries,
    num_keys,
    width,
    queries_row,
    keys_row,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program a tile of logits, in registers: the log-sum-exp of its rows, and of its columns."""
    row_blocks, column_blocks = tl.cdiv(num_queries, BLOCK_QUERIES), tl.cdiv(num_keys, BLOCK_KEYS)
    # Neighbouring programs work on GROUP rows of tiles, so that what they read is in the cache.
    in_row = tl.program_id(0) // column_blocks
    row_block, column_block = tl.swizzle2d(
        in_row, tl.program_id(0) - in_row * column_blocks, row_blocks, column_blocks, GROUP
    )
    rows = row_block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    columns = column_block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    channels = tl.arange(0, BLOCK_WIDTH)
    at_query = queries + rows.to(tl.int64)[:, None] * queries_row + channels[None, :]
    at_key = keys + columns.to(tl.int64)[None, :] * keys_row + channels[:, None]
    logits = tl.zeros((BLOCK_QUERIES, BLOCK_KEYS), tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        left = channels < width - start
        q = tl.load(at_query + start, mask=(rows < num_queries)[:, None] & left[None, :], other=0.0)
        k = tl.load(at_key + start, mask=(columns < num_keys)[None, :] & left[:, None], other=0.0)
        if UPCAST:
            q, k = q.to(tl.float32), k.to(tl.float32)
        logits = tl.dot(q, k, logits, input_precision=PRECISION)
    logits *= tl.load(scale)
    of_rows = tl.where((columns < num_keys)[None, :], logits, float("-inf"))
    largest = tl.max(of_rows, axis=1)
    of_rows = largest + tl.log(tl.sum(tl.exp(of_rows - largest[:, None]), axis=1))
    tl.store(row_sums + column_block.to(tl.int64) * num_queries + rows, of_rows, mask=rows < num_queries)
    if COLUMNS:
        of_columns = tl.where((rows < num_queries)[:, None], logits, float("-inf"))
        largest_of = tl.max(of_columns, axis=0)
        of_columns = largest_of + tl.log(tl.sum(tl.exp(of_columns - largest_of[None, :]), axis=0))
        tl.store(column_sums + row_block.to(tl.int64) * num_keys + columns, of_columns, mask=columns < num_keys)


@triton.jit
def cross_entropy_rows_kernel(logits, losses, num_keys, row_stride, first_positive, BLOCK: tl.constexpr):
    """One program a row: its loss, and the gradient in the place of its logits."""
    row = tl.program_id(0).to(tl.int64)
    at, places = logits + row * row_stride, tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)  # of each place; places are joined at the end
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_keys, BLOCK):
        # -1e30 and not -inf: a place that no key has come to yet would have -inf less -inf.
        x = tl.load(at + start + places, mask=places < num_keys - start, other=-1e30).to(tl.float32)
        before, largest = largest, tl.maximum(largest, x)
        total = total * tl.exp(before - largest) + tl.exp(x - largest)
    row_largest = tl.max(largest, axis=0)
    row_total = tl.sum(total * tl.exp(largest - row_largest), axis=0)
    positive = first_positive + row
    tl.store(losses + row, tl.log(row_total) + (row_largest - tl.load(at + positive).to(tl.float32)))
    tl.debug_barrier()  # the right key's logit is read before it is overwritten
    for start in range(0, num_keys, BLOCK):
        inside = places < num_keys - start
        x = tl.load(at + start + places, mask=inside, other=0.0).to(tl.float32)
        # Not exp(x - log_sum): a sum of 100 is rounded to 4e-6, and all probabilities with it.
        grad = tl.exp(x - row_largest) / row_total - tl.where(start + places == positive, 1.0, 0.0)
        tl.store(at + start + places, grad.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid_rows_kernel(logits, losses, num_keys, row_stride, first_positive, BLOCK: tl.constexpr):
    """One program a row: the summed loss of its pairs, and the gradient in the place of their logits."""
    row = tl.program_id(0).to(tl.int64)
    at, places = logits + row * row_stride, tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_keys, BLOCK):
        inside = places < num_keys - start
        x = tl.load(at + start + places, mask=inside, other=0.0).to(tl.float32)
        sign = tl.where(start + places == first_positive + row, -1.0, 1.0)
        x *= sign  # of a right key, so that softplus(x) is the loss of every pair
        small = tl.exp(-tl.abs(x))
        # log(1 + small) of the sure pairs, nearly all, is lost to rounding: its series has them.
        rest = tl.where(small < 0.01, small * (1.0 - small * (0.5 - small / 3)), tl.log(1.0 + small))
        total += tl.where(inside, tl.maximum(x, 0.0) + rest, 0.0)
        chance = tl.where(x >= 0, 1.0, small) / (1.0 + small)
        tl.store(at + start + places, (sign * chance).to(logits.dtype.element_ty), mask=inside)
    tl.store(losses + row, tl.sum(total, axis=0))
