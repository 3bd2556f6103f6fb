"""The masked cosine for EVA's teachers of 768 to 1280 channels."""

import torch

from vfm_kernels.triton import masked_cosine, scale


def run(width: int) -> None:
    prediction = torch.empty(65536, width, dtype=torch.bfloat16, device="meta")
    masked = torch.empty(65536, dtype=torch.bool, device="meta")
    masked_cosine(prediction, prediction, masked, 1e-8)


def run_scale() -> None:
    scale(torch.empty(65536, 1024, dtype=torch.bfloat16, device="meta"), torch.empty((), device="meta"))


CASES = {
    "1024": ("masked_cosine", 1024, lambda: run(1024)),
    "1280": ("masked_cosine", 1280, lambda: run(1280)),
    "scale": ("scale", 1024, run_scale),
}
