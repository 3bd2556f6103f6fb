"""What an attention is, beside its heads: who sees whom, how scores are scaled, which angles turn queries and keys."""

# B batch, N tokens, H heads, D width of a head, P positions of the table, S sequences of one long row

import math
from typing import NamedTuple

from torch import Tensor

from vfm_kernels.rope import rotate

# Of the fields of `Pattern`, in their order.
SCHEMA = (
    "Tensor? sin, Tensor? cos, Tensor? positions, SymInt num_prefix_tokens, Tensor? cu_seqlens,"
    " SymInt max_seqlen, bool causal, float scale"
)


class Pattern(NamedTuple):
    """In the order of the ops' arguments; `attention` says what each is."""

    sin: Tensor | None  # (B, P, D / 2), stride 0 where all samples share
    cos: Tensor | None
    positions: Tensor | None
    num_prefix_tokens: int
    cu_seqlens: Tensor | None
    max_seqlen: int
    causal: bool
    scale: float

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = False,
        scale: float | None = None,
        sin: Tensor | None = None,
        cos: Tensor | None = None,
        num_prefix_tokens: int = 0,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> "Pattern":
        """Of the arguments of `attention`, which are checked.

        Raises:
            ValueError: shapes that do not fit.
        """
        if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
            raise ValueError(f"q, k, v are {shapes}; they must be (B, N, H, D), all alike")
        if q.dtype != k.dtype or q.dtype != v.dtype:
            raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; they must be of one dtype")
        if q.device != k.device or q.device != v.device:
            raise ValueError(f"q, k, v lie on {q.device}, {k.device}, {v.device}; they must lie on one device")
        batch, num_tokens, _, width = q.shape
        if cu_seqlens is not None and batch != 1:
            raise ValueError(f"cu_seqlens parts one long row, and the batch is {batch}; it must be 1")
        if sin is not None and cos is not None:
            if sin.shape != cos.shape or sin.ndim not in (2, 3) or sin.shape[-1] * 2 != width:
                raise ValueError(f"sin is {tuple(sin.shape)}, cos {tuple(cos.shape)}; heads need (P, {width // 2})")
            if positions is None and (cu_seqlens is not None or sin.shape[-2] != num_tokens - num_prefix_tokens):
                raise ValueError(
                    f"a table of {sin.shape[-2]} rows for {num_tokens} tokens, {num_prefix_tokens} of them without a"
                    " position: these, and several sequences, need `positions`"
                )
            if positions is not None and positions.shape != (batch, num_tokens):
                raise ValueError(f"positions are {tuple(positions.shape)}; they must be {(batch, num_tokens)}")
            sin, cos = (table.expand(batch, *table.shape[-2:]) for table in (sin, cos))
        elif sin is not None or cos is not None:
            raise ValueError("sin and cos go together; one of them is missing")
        longest = num_tokens if max_seqlen is None or cu_seqlens is None else max_seqlen
        scale = 1 / math.sqrt(width) if scale is None else scale
        if scale <= 0:
            raise ValueError(f"scale is {scale}; it must be above 0")
        return cls(sin, cos, positions, num_prefix_tokens, cu_seqlens, longest, causal, scale)

    def turned(self, heads: Tensor, inverse: bool = False) -> Tensor:
        """Queries or keys (B, N, H, D) as the scores see them, by the plain form of `rope_2d`."""
        if self.sin is None or self.cos is None:
            return heads
        return rotate(heads, self.sin, self.cos, heads.shape[2], self.num_prefix_tokens, self.positions, inverse)

    def without_rope(self) -> "Pattern":
        """The rest of it, for queries and keys that have been turned."""
        return self._replace(sin=None, cos=None, positions=None, num_prefix_tokens=0)
