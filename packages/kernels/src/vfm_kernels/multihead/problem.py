"""An attention problem, by which backends are chosen: sizes and device, without values."""

import importlib.util
from dataclasses import dataclass

import torch

from vfm_kernels.dispatch.dispatch import not_supported_reasons


@dataclass(frozen=True)
class Problem:
    """Sizes, dtype and device of an attention.

    Attributes:
        shape: (B, N, H, D).
        dtype: dtype of queries, keys and values.
        device: `cuda`, `cpu`, ...
        capability: compute capability of the CUDA device, (0, 0) elsewhere.
        no_kernels: reasons why Triton kernels cannot run on this device and dtype at all; empty if they can.
        longest: tokens of the longest sequence.
        causal: a token sees only itself and earlier tokens.
        varlen: sequences of several lengths are concatenated in one row.
        rope: rotary positions rotate queries and keys first.
        masked: a boolean mask says which keys each query sees.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    device: str
    capability: tuple[int, int]
    no_kernels: tuple[str, ...]
    longest: int
    causal: bool = False
    varlen: bool = False
    rope: bool = False
    masked: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of a sample."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """Width of a head."""
        return self.shape[3]


def problem_on(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    causal: bool,
    varlen: bool,
    rope: bool,
    masked: bool = False,
) -> Problem:
    """Describe the problem of (B, N, H, D, longest sequence) on a device of this machine."""
    no_kernels = tuple(not_supported_reasons(torch.empty(0, dtype=dtype, device=device)))
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    batch, num_tokens, num_heads, width, longest = shape
    sizes = (batch, num_tokens, num_heads, width)
    return Problem(sizes, dtype, device.type, capability, no_kernels, longest, causal, varlen, rope, masked)


def hypothetical_problem(
    shape: tuple[int, int, int, int], dtype: torch.dtype, capability: tuple[int, int], **kind: bool
) -> Problem:
    """Describe a problem on a CUDA device that this machine need not have. Kernels still need Triton."""
    no_kernels = () if importlib.util.find_spec("triton") else ("triton is not installed",)
    return Problem(shape, dtype, "cuda", capability, no_kernels, shape[1], **kind)
