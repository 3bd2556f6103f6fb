"""Contrastive losses of a batch of 32768: a chunk of 4096 rows of logits, and all pairs in tiles."""

import torch

from vfm_kernels.triton import cross_entropy_rows, pair_gradients, pair_statistics, sigmoid_rows


def run() -> None:
    logits = torch.empty(4096, 32768, device="meta")
    cross_entropy_rows(logits, 0)
    sigmoid_rows(logits, 8192)


def run_all_pairs(precision: str = "high") -> None:
    torch.set_float32_matmul_precision(precision)  # vfm sets "high" on CUDA devices
    features, scale = torch.empty(32768, 1024, device="meta"), torch.empty((), device="meta")
    *statistics, _ = pair_statistics(features, features, scale, 0)
    pair_gradients(features, features, scale, tuple(statistics), 0, 4096, 4096)


CASES = {
    "chunk": ("pair_rows", 32768, run),
    "all pairs": ("pair_statistics", 1024, run_all_pairs),
    "all pairs in fp32": ("pair_statistics", 1024, lambda: run_all_pairs("highest")),
}
