"""Where a timm vision transformer looks: the attention of a block, rotary positions and all."""

# B images, P prefix tokens, N patches, H heads, L = P + N tokens

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vfm.config import UserError


@torch.no_grad()
def attention_weights(encoder: nn.Module, pixels: Tensor, *, layer: int = -1) -> Tensor:
    """The attention of one block, as timm's own unfused path computes it from its queries and keys.

    The fused kernel keeps no weights, so this block is run without it; what it gives is the same to rounding.

    Args:
        encoder: a timm `Eva` or `VisionTransformer`, in evaluation mode.
        pixels: normalised images, (B, 3, S, S).
        layer: block, from 0; negative counts from the end.

    Returns:
        (B, H, L, L): what each token (row) takes of each (column); rows sum to 1.

    Raises:
        UserError: a block whose attention is of another kind.
    """
    blocks: Any = encoder.blocks
    attention: Any = getattr(blocks[layer], "attn", None)
    if not hasattr(attention, "fused_attn") or not isinstance(getattr(attention, "attn_drop", None), nn.Dropout):
        raise UserError(f"{type(encoder).__name__}: {type(attention).__name__} shows no attention weights")
    found: list[Tensor] = []
    handle = attention.attn_drop.register_forward_hook(lambda module, inputs, output: found.append(inputs[0]))
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        encoder.forward_features(pixels)  # type: ignore[operator]
    finally:
        attention.fused_attn = fused
        handle.remove()
    return found[0]


def attention_maps(weights: Tensor, num_prefix_tokens: int) -> dict[str, Tensor]:
    """What the class token takes of each patch, if there is one, and what patches take on average, by these names.

    Args:
        weights: (B, H, L, L).
        num_prefix_tokens: P; the first of them is the class token.

    Returns:
        (B, N) each, means over heads.
    """
    patches = weights.mean(dim=1)[:, :, num_prefix_tokens:]  # (B, L, N)
    of_class = {"of the class token": patches[:, 0]} if num_prefix_tokens else {}
    return of_class | {"of the patches on average": patches[:, num_prefix_tokens:].mean(dim=1)}
