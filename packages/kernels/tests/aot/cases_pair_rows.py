"""Contrastive losses of a chunk of 4096 rows of logits in a batch of 32768."""

import torch

from vfm_kernels.triton import cross_entropy_rows, sigmoid_rows


def run() -> None:
    logits = torch.empty(4096, 32768, device="meta")
    cross_entropy_rows(logits, 0)
    sigmoid_rows(logits, 8192)


CASES = {"chunk": ("pair_rows", 32768, run)}
