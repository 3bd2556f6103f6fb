"""Sequences of different lengths in one row through timm's blocks, so that no padding is computed."""

# S sequences, T tokens of all of them, D width of a head

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import AttentionRope, DropPath
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from vfm_kernels.layers.accelerate import Acceleration
from vfm_kernels.layers.timm_attention import FusedAttention, FusedAttentionRope, FusedEvaAttention, rotary_attention

__all__ = ["packed_row", "positions_of_row"]


class _Row:
    """The forward of an attention whose row of tokens has several sequences."""

    row: tuple[Tensor, int]

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Compute timm's layer for each sequence."""
        return rotary_attention(self, x, rope, is_causal=is_causal, row=self.row)


class RowAttention(_Row, Attention):  # type: ignore[misc]
    """timm's `Attention` on a row of sequences."""


class RowEvaAttention(_Row, EvaAttention):  # type: ignore[misc]
    """timm's `EvaAttention` on a row of sequences."""


class RowAttentionRope(_Row, AttentionRope):  # type: ignore[misc]
    """timm's `AttentionRope` on a row of sequences."""


ROWS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: RowAttention,
    FusedAttention: RowAttention,
    EvaAttention: RowEvaAttention,
    FusedEvaAttention: RowEvaAttention,
    AttentionRope: RowAttentionRope,
    FusedAttentionRope: RowAttentionRope,
}


@contextmanager
def packed_row(model: nn.Module, lengths: Sequence[int]) -> Iterator[None]:
    """Let the tokens of each sequence see one another alone, in the blocks of a timm transformer within the context.

    Blocks are called with all tokens in one row, (1, T, C), and `rope` from `positions_of_row` if they rotate.

    Args:
        model: A transformer of timm, or its blocks.
        lengths: Tokens of each sequence, with prefix tokens. Their sum is T.

    Raises:
        ValueError: If no attention can take a row, or a layer would drop the paths of the whole row.
    """
    attentions = [(name, layer) for name, layer in model.named_modules() if type(layer) in ROWS]
    if not attentions:
        raise ValueError(f"expected a model with attentions of timm, got {type(model).__name__}")
    for name, layer in model.named_modules():
        if isinstance(layer, DropPath) and layer.training and layer.drop_prob:
            raise ValueError(f"{name}: drop path would drop all sequences of a row together; set it to 0")
    device = next(model.parameters()).device
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32, non_blocking=True)
    with Acceleration() as changes:
        for name, layer in attentions:
            row: Any = changes.replace(model, name, ROWS[type(layer)], "packed_row")
            row.row = (ends, max(lengths))
            changes.on_undo(delattr, row, "row")
        yield


def positions_of_row(tables: Sequence[Tensor], num_prefix_tokens: int) -> Tensor:
    """Join the rotary positions of several sequences for the tokens of a row. Prefix tokens are not rotated.

    Args:
        tables: timm's positions of each sequence's patches, (..., N, 2 D): sine, then cosine.
        num_prefix_tokens: Class and register tokens before the patches of each sequence.

    Returns:
        (..., T, 2 D).
    """
    parts = []
    for table in tables:
        still = table.new_zeros(*table.shape[:-2], num_prefix_tokens, table.shape[-1])
        still[..., table.shape[-1] // 2 :] = 1  # cosine
        parts += [still, table]
    return torch.cat(parts, dim=-2)
