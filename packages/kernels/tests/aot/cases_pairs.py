"""All pairs of a batch of 32768, and of 1024 samples of a process with all."""

import torch

from vfm_kernels.launch import pairs


def run(num_queries: int, dtype: torch.dtype, *, columns: bool) -> None:
    queries, keys = (torch.empty(n, 1024, dtype=dtype, device="meta") for n in (num_queries, 32768))
    pairs.log_sum_exp(queries, keys, torch.empty((), device="meta"), columns)


def rows() -> None:
    logits = torch.empty(4096, 32768, device="meta")
    pairs.cross_entropy_rows(logits, 0)
    pairs.sigmoid_rows(logits, 8192)


CASES = {
    "one process": ("pair_log_sum_exp", 1024, lambda: run(32768, torch.bfloat16, columns=True)),
    "one of many": ("pair_log_sum_exp", 1024, lambda: run(1024, torch.bfloat16, columns=False)),
    "fp32": ("pair_log_sum_exp_fp32", 1024, lambda: run(1024, torch.float32, columns=True)),
    "chunk": ("pair_rows", 32768, rows),
}
