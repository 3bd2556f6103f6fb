"""Launches what looks at all pairs of two sets."""

from typing import Any

import torch
from torch import Tensor

from vfm_kernels.launch import launch, settings, with_adjacent_columns
from vfm_kernels.triton.pairs import cross_entropy_rows_kernel, pair_log_sum_exp_kernel, sigmoid_rows_kernel


def log_sum_exp(queries: Tensor, keys: Tensor, scale: Tensor, columns: bool) -> tuple[Tensor, Tensor]:
    """The op `pair_log_sum_exp`: (n, D), (N, D), scalar in fp32; partial sums of tiles are joined by torch."""
    queries, keys = with_adjacent_columns(queries), with_adjacent_columns(keys)
    (num_queries, width), num_keys = queries.shape, len(keys)
    exact = queries.dtype == torch.float32
    chosen = settings("pair_log_sum_exp_fp32" if exact else "pair_log_sum_exp", width, queries.device)
    row_blocks, column_blocks = -(-num_queries // chosen["BLOCK_QUERIES"]), -(-num_keys // chosen["BLOCK_KEYS"])
    of_rows = torch.empty(column_blocks, num_queries, device=queries.device)
    of_columns = torch.empty(row_blocks if columns else 0, num_keys, device=queries.device)
    launch(
        pair_log_sum_exp_kernel,
        (row_blocks * column_blocks,),
        queries.device,
        queries,
        keys,
        scale,
        of_rows,
        of_columns,
        num_queries,
        num_keys,
        width,
        queries.stride(0),
        keys.stride(0),
        COLUMNS=columns,
        # Three TF32 products are as exact as fp32, on tensor cores; one alone would be off by 0.03 at a scale of 100.
        PRECISION="tf32x3" if exact else None,
        UPCAST=queries.device.type == "cpu",  # the interpreter cannot multiply bf16
        **chosen,
    )
    return of_rows.logsumexp(dim=0), of_columns.logsumexp(dim=0) if columns else of_columns.new_empty(0)


def cross_entropy_rows(logits: Tensor, first_positive: int) -> Tensor:
    """Losses (c,) of rows of logits (c, N), which become their gradients."""
    return _rows(cross_entropy_rows_kernel, logits, first_positive)


def sigmoid_rows(logits: Tensor, first_positive: int) -> Tensor:
    """Losses (c,) of rows of logits (c, N), which become their gradients."""
    return _rows(sigmoid_rows_kernel, logits, first_positive)


def _rows(kernel: Any, logits: Tensor, first_positive: int) -> Tensor:
    num_rows, num_keys = logits.shape
    losses = torch.empty(num_rows, device=logits.device)
    chosen = settings("pair_rows", num_keys, logits.device)
    launch(kernel, (num_rows,), logits.device, logits, losses, num_keys, logits.stride(0), first_positive, **chosen)
    return losses
