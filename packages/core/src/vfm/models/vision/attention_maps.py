"""Attention weights of a block of any vision transformer, and a map of them over the patches of an image."""

# B images, N patches, H heads, L tokens: the prefix (class and register tokens), then the patches

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.vision.vision_towers import read_tokens, vision_tower


@torch.no_grad()
def attention_weights(model: ClipModel | nn.Module, pixels: Tensor, *, layer: int = -1) -> Tensor:
    """Compute the attention weights of a block, with rotary positions if it has them.

    Fused kernels do not return weights, so this block runs on the module's own unfused path. Its output is the same up
    to rounding.

    Args:
        model: A CLIP model or a timm encoder, in evaluation mode.
        pixels: Normalised images, (B, 3, S, S).
        layer: Index of the block. Negative indices count from the end.

    Returns:
        (B, H, L, L): weight of each token (column) in the output of each token (row). Rows sum to 1.

    Raises:
        UserError: If the model has no patch tokens or no such block, or an attention layer of an unsupported kind.
    """
    tower = vision_tower(model)
    attention: Any = getattr(tower.blocks[tower.block_index(layer)], "attn", None)
    if isinstance(attention, nn.MultiheadAttention):
        recorded = _record_torch(attention)
    elif hasattr(attention, "fused_attn") and isinstance(getattr(attention, "attn_drop", None), nn.Dropout):
        recorded = _record_timm(attention)
    else:
        raise UserError(f"{tower.name}: cannot read attention weights of {type(attention).__name__}")
    with recorded as weights:
        read_tokens(tower, pixels, layer)
    return weights[0]


def attention_map(weights: Tensor, num_patches: int) -> Tensor:
    """Compute the attention from the class token to each patch, or the mean over all patches without a class token.

    Args:
        weights: (B, H, L, L).
        num_patches: N. The prefix, if any, begins with the class token.

    Returns:
        (B, N), the mean over heads.
    """
    to_patches = weights.mean(dim=1)[:, :, -num_patches:]  # (B, L, N)
    has_prefix = weights.shape[-1] > num_patches
    if has_prefix:
        return to_patches[:, 0]
    return to_patches.mean(dim=1)


@contextmanager
def _record_timm(attention: Any) -> Iterator[list[Tensor]]:
    """Record the weights of a timm attention layer.

    They are the input of its dropout on the unfused path.
    """
    weights: list[Tensor] = []
    handle = attention.attn_drop.register_forward_hook(lambda module, inputs, output: weights.append(inputs[0]))
    # The fused kernel never stores the weights.
    fused = attention.fused_attn
    attention.fused_attn = False
    try:
        yield weights
    finally:
        attention.fused_attn = fused
        handle.remove()


@contextmanager
def _record_torch(attention: nn.MultiheadAttention) -> Iterator[list[Tensor]]:
    """Record the weights of torch's attention layer.

    open_clip calls the layer with `need_weights=False`, so a hook calls it once more with the same inputs.
    """
    recorded: list[Tensor] = []

    def call_again(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        # `forward` and not `attention(...)`: the latter would call this hook again.
        weights = attention.forward(*inputs, **{**keywords, "need_weights": True, "average_attn_weights": False})[1]
        assert weights is not None  # need_weights
        recorded.append(weights)

    handle = attention.register_forward_hook(call_again, with_kwargs=True)
    try:
        yield recorded
    finally:
        handle.remove()
