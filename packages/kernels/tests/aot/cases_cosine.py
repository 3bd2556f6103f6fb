"""The masked cosine for EVA's teachers of 768 to 1280 channels."""

import torch

from vfm_kernels.triton import masked_cosine, masked_cosine_backward


def run(width: int) -> None:
    prediction = torch.empty(65536, width, dtype=torch.bfloat16, device="meta")
    masked = torch.empty(65536, dtype=torch.bool, device="meta")
    masked_cosine(prediction, prediction, masked, 1e-8)
    masked_cosine_backward(torch.empty((), device="meta"), prediction, prediction, masked, 1e-8)


CASES = {
    "1024": ("masked_cosine", 1024, lambda: run(1024)),
    "1280": ("masked_cosine", 1280, lambda: run(1280)),
}
