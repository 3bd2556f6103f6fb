"""Mask, scale and rotary angles of an attention, without its heads."""

# B batch, N tokens, H heads, D width of a head, P positions of the table

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Schema of the fields of `Pattern`, in their order.
SCHEMA = (
    "Tensor? sin, Tensor? cos, Tensor? positions, SymInt num_prefix_tokens, Tensor? cu_seqlens,"
    " SymInt max_seqlen, bool causal, float scale"
)


class Pattern(NamedTuple):
    """Mask, scale and angles in the order of the ops' arguments. `attention` documents each of them."""

    sin: Tensor | None  # (B, P, D / 2), stride 0 over the batch where all samples share a table
    cos: Tensor | None
    positions: Tensor | None
    num_prefix_tokens: int
    cu_seqlens: Tensor | None
    max_seqlen: int
    causal: bool
    scale: float

    @classmethod
    def from_arguments(cls, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **arguments: Any) -> "Pattern":
        """Check the arguments of `attention` and fill in their defaults.

        Raises:
            ValueError: If shapes, dtypes, devices or numbers are inconsistent.
        """
        if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
            raise ValueError(f"expected q, k, v of equal shape (B, N, H, D), got {shapes}")
        if q.dtype != k.dtype or q.dtype != v.dtype:
            raise ValueError(f"expected q, k, v of one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
        if q.device != k.device or q.device != v.device:
            raise ValueError(f"expected q, k, v on one device, got {q.device}, {k.device}, {v.device}")
        return cls.of_shape(q.shape, *rest, **arguments)

    @classmethod
    def of_shape(
        cls,
        shape: Sequence[int],
        causal: bool = False,
        scale: float | None = None,
        sin: Tensor | None = None,
        cos: Tensor | None = None,
        num_prefix_tokens: int = 0,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> "Pattern":
        """Check the arguments of `attention` for heads of shape (B, N, H, D), and fill in their defaults."""
        batch, num_tokens, _, width = shape
        if cu_seqlens is not None and batch != 1:
            raise ValueError(f"cu_seqlens needs a batch of 1 (one long row of sequences), got {batch}")
        if sin is not None and cos is not None:
            if sin.shape != cos.shape or sin.ndim not in (2, 3) or sin.shape[-1] * 2 != width:
                shapes = f"{tuple(sin.shape)} and {tuple(cos.shape)}"
                raise ValueError(f"expected sin and cos of shape (P, {width // 2}) for heads of {width}, got {shapes}")
            if positions is None and (cu_seqlens is not None or sin.shape[-2] != num_tokens - num_prefix_tokens):
                raise ValueError(
                    f"a table of {sin.shape[-2]} rows does not fit {num_tokens} tokens with {num_prefix_tokens} prefix"
                    " tokens, or there are several sequences: pass `positions`"
                )
            if positions is not None and positions.shape != (batch, num_tokens):
                raise ValueError(f"expected positions of shape {(batch, num_tokens)}, got {tuple(positions.shape)}")
            if positions is not None:
                _check_positions(positions, sin.shape[-2])
            sin = sin.expand(batch, *sin.shape[-2:])
            cos = cos.expand(batch, *cos.shape[-2:])
        elif sin is not None or cos is not None:
            raise ValueError("sin and cos must be given together")
        longest = num_tokens if max_seqlen is None or cu_seqlens is None else max_seqlen
        if cu_seqlens is not None:
            _check_lengths(cu_seqlens, num_tokens, longest)
        scale = 1 / math.sqrt(width) if scale is None else scale
        if scale <= 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        return cls(sin, cos, positions, num_prefix_tokens, cu_seqlens, longest, causal, scale)

    def without_rope(self) -> "Pattern":
        """Drop the angles, for queries and keys that are already rotated."""
        return self._replace(sin=None, cos=None, positions=None, num_prefix_tokens=0)


def _check_positions(positions: Tensor, num_rows: int) -> None:
    """Require positions that are rows of the table of angles."""
    if not can_be_read(positions):
        _assert_on_device((positions < num_rows).all(), "expected positions below the number of rows of sin and cos")
    elif positions.numel() and positions.max() >= num_rows:
        raise ValueError(
            f"expected positions below {num_rows}, the number of rows of sin and cos, got {int(positions.max())}"
        )


def _check_lengths(cu_seqlens: Tensor, num_tokens: int, longest: int) -> None:
    """Require sequences that are not longer than the longest, for which alone kernels have programs."""
    if not can_be_read(cu_seqlens):
        lengths_on_device = cu_seqlens.diff()
        rise = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == num_tokens) & (lengths_on_device >= 0).all()
        _assert_on_device(rise, "expected cu_seqlens that rise from 0 to the number of tokens")
        _assert_on_device((lengths_on_device <= longest).all(), "expected sequences of at most max_seqlen tokens")
        return
    ends = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    if not ends or ends[0] != 0 or ends[-1] != num_tokens or min(lengths, default=0) < 0:
        raise ValueError(f"expected cu_seqlens that rise from 0 to {num_tokens}, the number of tokens, got {ends}")
    if max(lengths, default=0) > longest:
        raise ValueError(f"expected max_seqlen of at least {max(lengths)}, the longest sequence, got {longest}")


def _assert_on_device(holds: Tensor, expected: str) -> None:
    """Make the device stop if a condition does not hold. The host does not wait for the check.

    The message must be constant: with a number in it, `torch.compile` cannot trace a call with another number.
    """
    torch._assert_async(holds, expected)


def can_be_read(values: Tensor) -> bool:
    """Check whether the host can read values without waiting for a device, and outside of a graph."""
    return not torch.compiler.is_compiling() and type(values) is Tensor and values.device.type == "cpu"
