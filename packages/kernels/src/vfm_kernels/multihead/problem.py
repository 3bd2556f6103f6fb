"""Sizes and device of an attention call, by which a backend is chosen."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

from vfm_kernels.dispatch.choosing import Size
from vfm_kernels.dispatch.dispatch import not_supported_reasons
from vfm_kernels.dispatch.measured import measurements


@dataclass(frozen=True)
class Problem:
    """Sizes, dtype and device of an attention.

    Attributes:
        shape: (B, N, H, D).
        dtype: Dtype of queries, keys and values.
        device: `cuda`, `cpu`, ...
        capability: Compute capability of the CUDA device, (0, 0) elsewhere.
        no_kernels: Reasons why Triton kernels cannot run on this device and dtype at all; empty if they can.
        longest: Tokens of the longest sequence.
        causal: A token sees only itself and earlier tokens.
        varlen: Sequences of several lengths are concatenated in one row.
        rope: Rotary positions rotate queries and keys first.
        masked: A boolean mask says which keys each query sees.
        card: Name of the CUDA device, empty elsewhere.
        backward: Whether gradients will be needed.
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
    card: str = ""
    backward: bool = False

    @property
    def size(self) -> Size:
        """What a backend is chosen for by measured times."""
        kind = {"causal": self.causal, "varlen": self.varlen, "rope": self.rope}
        batch, num_tokens, num_heads, width = self.shape
        if self.varlen:
            # As many sequences as there would be if all had the longest length, which is how measurements count them.
            sequences = -(-batch * num_tokens // max(1, self.longest))
        else:
            sequences = batch
        words = tuple(word for word, holds in kind.items() if holds)
        dtype = str(self.dtype).removeprefix("torch.")
        return Size("attention", sequences * num_heads, self.longest, width, dtype, self.backward, kind=words)

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
    backward: bool = False,
) -> Problem:
    """Describe the problem of (B, N, H, D, longest sequence) on a device of this machine."""
    no_kernels = tuple(not_supported_reasons(torch.empty(0, dtype=dtype, device=device)))
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
    else:
        capability = (0, 0)
    batch, num_tokens, num_heads, width, longest = shape
    sizes = (batch, num_tokens, num_heads, width)
    if device.type == "cuda" and measurements():
        card = torch.cuda.get_device_name(device)
    else:
        card = ""
    kind = (causal, varlen, rope, masked)
    return Problem(sizes, dtype, device.type, capability, no_kernels, longest, *kind, card, backward)


def hypothetical_problem(
    shape: tuple[int, int, int, int], dtype: torch.dtype, capability: tuple[int, int], **kind: Any
) -> Problem:
    """Describe a problem on a CUDA device that this machine need not have.

    Kernels still need an installed Triton.

    Args:
        shape: (B, N, H, D).
        dtype: Dtype of the heads.
        capability: Compute capability of the device, such as (9, 0).
        **kind: Further attributes of the problem, such as `causal`.
    """
    no_kernels = () if importlib.util.find_spec("triton") else ("triton is not installed",)
    return Problem(shape, dtype, "cuda", capability, no_kernels, shape[1], **kind)
