"""What moves tokens, at the shapes of EVA-02-L and of MAE."""

import torch

from vfm_kernels.launch import tokens


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


MASK, PATCHES = meta(256, 256, dtype=torch.bool), meta(256, 256, 1024)
INDEX, FILL = meta(256, 64, dtype=torch.int64), meta(1024).expand(256, 256, 1024)


def mask() -> None:
    fp32 = {"dtype": torch.float32}
    tokens.mask(PATCHES, meta(1024, **fp32), MASK, meta(1024, **fp32), meta(257, 1024, **fp32))


CASES = {
    "mask": ("mask_tokens", 1024, mask),
    "mask backward": ("mask_tokens_backward", 1024, lambda: tokens.mask_backward(meta(256, 257, 1024), MASK)),
    "gather": ("gather_tokens", 1024, lambda: tokens.gather(PATCHES, INDEX)),
    "scatter": ("scatter_tokens", 1024, lambda: tokens.scatter(PATCHES[:, :64], INDEX, 256, FILL)),
}
