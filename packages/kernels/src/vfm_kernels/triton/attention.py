"""Launch of attention, forward and backward.

The kernels are in separate files: `attention_short`, `attention_stream` and `attention_backward`.
"""

# B batch, N tokens, H heads, D width of a head

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vfm_kernels.pattern import Pattern
from vfm_kernels.triton.attention_backward import attention_backward_kernel, attention_delta_kernel
from vfm_kernels.triton.attention_short import attention_short_kernel
from vfm_kernels.triton.attention_stream import attention_stream_kernel
from vfm_kernels.triton.launch import block_of, launch, settings, with_adjacent_columns
from vfm_kernels.triton.rope import rotate_into

# EVA-02's width. With angles, kernels of wider heads spill registers, so another kernel rotates such heads before.
WIDEST_ROTATED = 64
TAIL = 16  # keys beyond a power of two that the short kernel handles in a separate block


class LaunchLayout(NamedTuple):
    """Everything that a launch depends on except addresses.

    Launches with the same layout share their grid and their numbers.

    Attributes:
        shape: (B, N, H, D) of the heads.
        dtype: Dtype of the heads.
        device: Device of all tensors.
        strides: Strides over batch, token and head, for each tensor of heads.
        table: Strides of the angles, if there are any.
        positions: Whether each token's row of the angles is given.
        sequences: Number of sequences in one row. A batch has None.
        num_prefix_tokens: See `Pattern`.
        max_seqlen: See `Pattern`.
        causal: See `Pattern`.
        scale: See `Pattern`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...]
    table: tuple[int, ...] | None
    positions: bool
    sequences: int | None
    num_prefix_tokens: int
    max_seqlen: int
    causal: bool
    scale: float

    @classmethod
    def of(cls, pattern: Pattern, *heads: Tensor) -> "LaunchLayout":
        """Collect the layout of a launch with these tensors of heads, the queries first."""
        q, sin, cos, cu_seqlens = heads[0], pattern.sin, pattern.cos, pattern.cu_seqlens
        if sin is not None and cos is not None and sin.stride() != cos.stride():
            raise ValueError(f"expected sin and cos of equal strides, got {sin.stride()} and {cos.stride()}")
        strides: list[int] = []
        for tensor in heads:
            strides.extend(tensor.stride()[:3])
        return cls(
            q.shape,
            q.dtype,
            q.device,
            tuple(strides),
            None if sin is None else sin.stride(),
            pattern.positions is not None,
            None if cu_seqlens is None else len(cu_seqlens) - 1,
            pattern.num_prefix_tokens,
            pattern.max_seqlen,
            pattern.causal,
            pattern.scale,
        )

    def grid(self, block: int) -> tuple[int, int, int]:
        """Compute the numbers of programs over blocks, heads and sequences.

        The blocks are those of the longest sequence.
        """
        sequences = self.shape[0] if self.sequences is None else self.sequences
        return -(-self.max_seqlen // block), self.shape[2], sequences

    def sizes(self) -> dict[str, Any]:
        """Collect the constants of the kernels with products."""
        first, second = split(self.shape[3])
        return {
            "NUM_HEADS": self.shape[2],
            "WIDTH": self.shape[3],
            "WIDTH_1": first,
            "WIDTH_2": second,
            "ALIGN": self.alignment(),
            # Triton's default for fp32 is TF32, with an error of 1e-3; fp32 is for tests against the plain form.
            "PRECISION": "ieee" if self.dtype == torch.float32 else None,
            "UPCAST": self.device.type == "cpu" and self.dtype == torch.bfloat16,  # the interpreter cannot multiply it
        }

    def rope(self) -> dict[str, bool]:
        """Collect the constants of the kernels that rotate."""
        return {"ROPE": self.table is not None, "HAS_POSITIONS": self.positions}

    def alignment(self) -> int:
        """Find a common divisor of all strides, 8 or 1."""
        return 8 if all(stride % 8 == 0 for stride in self.strides) else 1


# Grid, numbers and constants of a launch.
Launch = tuple[tuple[int, ...], tuple[int | float, ...], dict[str, Any]]
MOST_LAYOUTS = 1024  # kept launches; sizes that never come again must not fill the memory


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: Pattern, *, short: bool
) -> None:
    """Compute attention by a kernel, and write it into the buffers.

    Args:
        q: Queries, (B, N, H, D).
        k: Keys, (B, N, H, D).
        v: Values, (B, N, H, D).
        out: Buffer of the output, (B, N, H, D).
        lse: Buffer of the softmax's sums, (B, H, N).
        pattern: Mask, scale and angles.
        short: Whether to use the kernel for few tokens.
    """
    q, k, v = with_adjacent_columns(q), with_adjacent_columns(k), with_adjacent_columns(v)
    # The streaming kernel would rotate the same keys again for each block of queries, so it gets rotated ones.
    if pattern.sin is not None and (not short or q.shape[3] > WIDEST_ROTATED):
        q, k, pattern = _rotated(q, pattern), _rotated(k, pattern), pattern.without_rope()
    layout = LaunchLayout.of(pattern, q, k, v)
    if short:
        grid, numbers, constants = _short(layout)
        launch(attention_short_kernel, grid, q.device, q, k, v, out, lse, *_table(q, pattern), *numbers, **constants)
    else:
        grid, numbers, constants = _stream(layout)
        launch(attention_stream_kernel, grid, q.device, q, k, v, out, lse, pattern.cu_seqlens, *numbers, **constants)


def attention_backward(
    d_out: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    pattern: Pattern,
) -> None:
    """Compute the gradients of attention by a kernel, and write them into the buffers.

    Args:
        d_out: Gradient of the output, (B, N, H, D).
        out: Output of the forward.
        lse: The softmax's sums, (B, H, N).
        q: Queries, (B, N, H, D).
        k: Keys, (B, N, H, D).
        v: Values, (B, N, H, D).
        d_q: Buffer of the queries' gradient. The three buffers must have equal strides.
        d_k: Buffer of the keys' gradient.
        d_v: Buffer of the values' gradient.
        pattern: Mask, scale and angles.
    """
    d_out = with_adjacent_columns(d_out)
    q = with_adjacent_columns(q)
    k = with_adjacent_columns(k)
    v = with_adjacent_columns(v)
    in_kernel = pattern
    if pattern.sin is not None:
        q, k = _rotated(q, pattern), _rotated(k, pattern)
        in_kernel = pattern if q.shape[3] <= WIDEST_ROTATED else pattern.without_rope()
    layout, delta = LaunchLayout.of(in_kernel, q, k, v, d_out, d_q), torch.empty_like(lse)
    grid, numbers, constants = _delta(layout)
    launch(attention_delta_kernel, grid, q.device, out, d_out, delta, *numbers, **constants)
    grid, numbers, constants = _backward(layout)
    tensors = (q, k, v, d_out, lse, delta, d_q, d_k, d_v, pattern.cu_seqlens, *_table(q, in_kernel))
    launch(attention_backward_kernel, grid, q.device, *tensors, *numbers, **constants)
    if in_kernel is not pattern:
        for gradient in (d_q, d_k):
            _rotate(gradient, gradient, pattern, inverse=True)


@lru_cache(MOST_LAYOUTS)
def _short(layout: LaunchLayout) -> Launch:
    batch, num_tokens, num_heads, width = layout.shape
    num_keys, has_tail = short_keys(num_tokens)
    numbers = (num_tokens, layout.num_prefix_tokens, layout.scale / math.log(2))
    constants = {"NUM_KEYS": num_keys, "HAS_TAIL": has_tail, **layout.rope(), **layout.sizes()}
    chosen = settings("attention_short", width, layout.device)
    return (num_heads, batch), (*numbers, *layout.strides, *(layout.table or (0, 0, 0))), constants | chosen


@lru_cache(MOST_LAYOUTS)
def _stream(layout: LaunchLayout) -> Launch:
    chosen = settings("attention_stream", layout.shape[3], layout.device)
    constants = {"CAUSAL": layout.causal, "VARLEN": layout.sequences is not None, **layout.sizes()}
    numbers = (layout.shape[1], layout.scale / math.log(2), *layout.strides)
    return layout.grid(chosen["BLOCK_QUERIES"]), numbers, constants | chosen


@lru_cache(MOST_LAYOUTS)
def _delta(layout: LaunchLayout) -> Launch:
    batch, num_tokens, num_heads, width = layout.shape
    chosen = settings("attention_delta", width, layout.device)
    grid = (-(-num_tokens // chosen["BLOCK_ROWS"]), num_heads, batch)
    sizes = {"NUM_HEADS": num_heads, "WIDTH": width, "BLOCK_WIDTH": block_of(width), "ALIGN": layout.alignment()}
    return grid, (num_tokens, *layout.strides[9:12]), sizes | chosen


@lru_cache(MOST_LAYOUTS)
def _backward(layout: LaunchLayout) -> Launch:
    chosen = settings("attention_backward", layout.shape[3], layout.device)
    numbers = (layout.shape[1], layout.num_prefix_tokens, layout.scale, *layout.strides, *(layout.table or (0, 0, 0)))
    constants = {"CAUSAL": layout.causal, "VARLEN": layout.sequences is not None, **layout.rope(), **layout.sizes()}
    return layout.grid(chosen["BLOCK"]), numbers, constants | chosen


def forget_settings() -> None:
    """Clear the cached launches, after a table of settings has changed."""
    for launch_of in (_short, _stream, _delta, _backward):
        launch_of.cache_clear()


def short_keys(num_tokens: int) -> tuple[int, bool]:
    """Compute the number of keys in the short kernel's block, and whether up to 16 more are in its tail."""
    whole = 1 << max(num_tokens.bit_length() - 1, 0)
    if whole >= TAIL and 0 < num_tokens - whole <= TAIL:
        return whole, True
    return max(block_of(num_tokens), TAIL), False


def _rotated(heads: Tensor, pattern: Pattern) -> Tensor:
    """Rotate queries or keys into a new buffer; without angles they are returned unchanged."""
    if pattern.sin is None:
        return heads
    buffer = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    _rotate(buffer, heads, pattern)
    return buffer


def _rotate(target: Tensor, heads: Tensor, pattern: Pattern, *, inverse: bool = False) -> None:
    if pattern.sin is not None and pattern.cos is not None:
        options = (pattern.num_prefix_tokens, pattern.positions)
        rotate_into(target, heads, pattern.sin, pattern.cos, *options, inverse=inverse)


def _table(q: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    """Collect angles and positions. Missing ones are replaced by a tensor that the kernel does not read."""
    sin = q if pattern.sin is None else pattern.sin
    cos = q if pattern.cos is None else pattern.cos
    positions = q if pattern.positions is None else pattern.positions.contiguous()
    return sin, cos, positions


def split(width: int) -> tuple[int, int]:
    """Split a head's width into one or two powers of two.

    Triton needs powers of two. The split with the least padding is taken.
    """
    for second in (16, 32):
        if 64 < width <= 64 + second:
            return 64, second
    return max(block_of(width), 16), 0
