"""Masking, gathering and scattering of tokens at the shapes of EVA-02-L and MAE."""

import torch

from vfm_kernels.triton import gather_tokens, mask_tokens, mask_tokens_backward, scatter_tokens


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


MASK, PATCHES = meta(256, 256, dtype=torch.bool), meta(256, 256, 1024)
INDEX, FILL = meta(256, 64, dtype=torch.int64), meta(1024).expand(256, 256, 1024)


def mask() -> None:
    fp32 = {"dtype": torch.float32}
    mask_tokens(PATCHES, meta(1024, **fp32), MASK, meta(1024, **fp32), meta(257, 1024, **fp32))


CASES = {
    "mask": ("mask_tokens", 1024, mask),
    "mask backward": ("mask_tokens_backward", 1024, lambda: mask_tokens_backward(meta(256, 257, 1024), MASK)),
    "gather": ("gather_tokens", 1024, lambda: gather_tokens(PATCHES, INDEX)),
    "scatter": ("scatter_tokens", 1024, lambda: scatter_tokens(PATCHES[:, :64], INDEX, 256, FILL)),
}
