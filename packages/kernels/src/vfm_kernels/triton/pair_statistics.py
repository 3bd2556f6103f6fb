"""The softmax statistics of all pairs in both directions from one product, and the gradients of a chunk of logits.

Both kernels compute a logit by the same instructions, so it has the same bits. With a factor of 100, another order of
the sum would shift a probability near 1 by 1e-5, and its gradient, the difference from 1, by all of that.
"""

# n rows (samples of this process), N keys (of all processes), D width, c rows of a chunk of logits
# mypy: ignore-errors

import torch
import triton
import triton.language as tl
from torch import Tensor

from vfm_kernels.triton.launch import launch, settings

PROGRAMS = 512  # enough for each multiprocessor of a large card, where there are few blocks of rows


@triton.jit
def logits_tile(
    image,
    text,
    rows,
    keys,
    num_rows,
    num,
    width,
    factor,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute a tile of logits, (BLOCK_ROWS, BLOCK_KEYS). Logits outside the matrix are 0."""
    logits = tl.zeros((BLOCK_ROWS, BLOCK_KEYS), tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        channels = start + tl.arange(0, BLOCK_WIDTH)
        inside = channels < width
        a = tl.load(
            image + rows[:, None] * width + channels[None, :], (rows < num_rows)[:, None] & inside[None, :], 0.0
        )
        b = tl.load(text + keys[None, :] * width + channels[:, None], (keys < num)[None, :] & inside[:, None], 0.0)
        logits = tl.dot(a, b, logits, input_precision=PRECISION)
    return logits * factor


@triton.jit
def pair_statistics_kernel(
    image,
    text,
    scale,
    row_largest,
    row_total,
    positives,
    key_largest,
    key_total,
    offset,
    num_rows,
    num,
    width,
    tiles_of_part,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the largest logit and the sum of exponentials of a block of rows and of the columns, and the positives.

    Row r is an image whose text is the key offset + r.
    """
    block, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    factor = tl.load(scale)
    rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows < num_rows
    largest = tl.full((BLOCK_ROWS,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    positive = tl.zeros((BLOCK_ROWS,), tl.float32)
    last = tl.minimum((part + 1) * tiles_of_part, tl.cdiv(num, BLOCK_KEYS))
    for tile in range(part * tiles_of_part, last):
        keys = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        is_key = keys < num
        logits = logits_tile(
            image, text, rows, keys, num_rows, num, width, factor, BLOCK_ROWS, BLOCK_KEYS, BLOCK_WIDTH, PRECISION
        )
        positive += tl.sum(tl.where((offset + rows)[:, None] == keys[None, :], logits, 0.0), axis=1)
        is_pair = is_row[:, None] & is_key[None, :]
        # Not -inf: a row without a key would compute -inf - (-inf) = NaN.
        logits = tl.where(is_pair, logits, -1e30)
        before, largest = largest, tl.maximum(largest, tl.max(logits, axis=1))
        of_rows = tl.where(is_pair, tl.exp(logits - largest[:, None]), 0.0)
        total = total * tl.exp(before - largest) + tl.sum(of_rows, axis=1)
        key_most = tl.max(logits, axis=0)
        of_keys = tl.where(is_pair, tl.exp(logits - key_most[None, :]), 0.0)
        tl.store(key_largest + block * num + keys, key_most, is_key)
        tl.store(key_total + block * num + keys, tl.sum(of_keys, axis=0), is_key)
    tl.store(row_largest + part * num_rows + rows, largest, is_row)
    tl.store(row_total + part * num_rows + rows, total, is_row)
    tl.store(positives + part * num_rows + rows, positive, is_row)


@triton.jit
def pair_gradients_kernel(
    image,
    text,
    scale,
    row_largest,
    row_total,
    key_largest,
    key_total,
    gradients,
    products,
    offset,
    first,
    num_rows,
    num,
    width,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store a tile of the sums of the probabilities in both directions, less 2 at the positive pairs."""
    block, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    local = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    rows, keys = first + local, tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    is_row, is_key = local < num_rows, keys < num
    factor = tl.load(scale)
    logits = logits_tile(
        image, text, rows, keys, first + num_rows, num, width, factor, BLOCK_ROWS, BLOCK_KEYS, BLOCK_WIDTH, PRECISION
    )
    # Rows and keys beyond the end get an exponent of -1e30, and so a probability of 0.
    of_rows = tl.exp(logits - tl.load(row_largest + rows, is_row, 1e30)[:, None])
    of_keys = tl.exp(logits - tl.load(key_largest + keys, is_key, 1e30)[None, :])
    grad = of_rows / tl.load(row_total + rows, is_row, 1.0)[:, None]
    grad += of_keys / tl.load(key_total + keys, is_key, 1.0)[None, :]
    grad -= tl.where((offset + rows)[:, None] == keys[None, :], 2.0, 0.0)
    is_pair = is_row[:, None] & is_key[None, :]
    tl.store(gradients + local[:, None] * num + keys[None, :], grad, is_pair)
    tl.store(products + tile * num_rows + local, tl.sum(tl.where(is_pair, grad * logits, 0.0), axis=1), is_row)


def pair_statistics(image: Tensor, text: Tensor, scale: Tensor, offset: int) -> tuple[Tensor, ...]:
    """Compute the statistics of the softmax over rows and over columns.

    Args:
        image: Features of this process's images, (n, D).
        text: Features of all texts, (N, D).
        scale: Factor of the cosines, a scalar tensor.
        offset: Key that belongs to row 0.

    Returns:
        The largest logit and the sum of exponentials of rows, (n,), and of columns, (N,), and the positives.
    """
    num_rows, num, width = len(image), *text.shape
    chosen = settings("pair_statistics", width, image.device)
    num_blocks, num_tiles = triton.cdiv(num_rows, chosen["BLOCK_ROWS"]), triton.cdiv(num, chosen["BLOCK_KEYS"])
    # Columns are cut into parts until the grid has enough programs. Each part has a row of statistics, joined at the
    # end.
    tiles_of_part = triton.cdiv(num_tiles, min(num_tiles, triton.cdiv(PROGRAMS, num_blocks)))
    num_parts = triton.cdiv(num_tiles, tiles_of_part)
    largest = image.new_empty((num_parts, num_rows))
    total = torch.empty_like(largest)
    positives = torch.empty_like(largest)
    keys = [image.new_empty((num_blocks, num)) for _ in range(2)]
    sizes = (offset, num_rows, num, width, tiles_of_part)
    arguments = (image, text, scale, largest, total, positives, *keys, *sizes)
    grid = (num_blocks, num_parts)
    launch(pair_statistics_kernel, grid, image.device, *arguments, **chosen, PRECISION=_precision())
    return *_joined(largest, total), *_joined(*keys), positives.sum(dim=0)


def pair_gradients(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    statistics: tuple[Tensor, ...],
    offset: int,
    first: int,
    num_rows: int,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of some rows of logits.

    Args:
        image: Features of this process's images, (n, D).
        text: Features of all texts, (N, D).
        scale: Factor of the cosines, a scalar tensor.
        statistics: Result of `pair_statistics`.
        offset: Key that belongs to row 0.
        first: First row.
        num_rows: Number c of rows.

    Returns:
        The gradients (c, N), and the sum of gradient times logit.
    """
    num, width = text.shape
    chosen = settings("pair_statistics", width, image.device)
    grid = (triton.cdiv(num_rows, chosen["BLOCK_ROWS"]), triton.cdiv(num, chosen["BLOCK_KEYS"]))
    gradients, products = image.new_empty((num_rows, num)), image.new_empty((grid[1], num_rows))
    arguments = (image, text, scale, *statistics, gradients, products, offset, first, num_rows, num, width)
    launch(pair_gradients_kernel, grid, image.device, *arguments, **chosen, PRECISION=_precision())
    return gradients, products.sum()


def _precision() -> str:
    """Return the rounding of factors for `tl.dot`.

    It is TF32 where torch multiplies fp32 matrices in TF32, and otherwise three products of TF32.
    """
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _joined(largest: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Join the statistics of several parts."""
    most = largest.amax(dim=0)
    return most, (total * (largest - most).exp()).sum(dim=0)
