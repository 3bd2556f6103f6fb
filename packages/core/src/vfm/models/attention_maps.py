"""Where a vision transformer looks: the attention of a block, rotary positions and all."""

# B images, N patches, H heads, L tokens: the prefix (class and register tokens), then the patches

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.vision_towers import read_tokens, vision_tower


@torch.no_grad()
def attention_weights(model: ClipModel | nn.Module, pixels: Tensor, *, layer: int = -1) -> Tensor:
    """The attention of one block, as the module's own unfused path computes it from its queries and keys.

    Fused kernels keep no weights, so this block is run without them; what it gives is the same to rounding.

    Args:
        model: a CLIP model or a timm encoder, in evaluation mode.
        pixels: normalised images, (B, 3, S, S).
        layer: block, from 0; negative counts from the end.

    Returns:
        (B, H, L, L): what each token (row) takes of each (column); rows sum to 1.

    Raises:
        UserError: the model has no patch tokens, or attention of another kind.
    """
    tower = vision_tower(model)
    attention: Any = getattr(tower.blocks[layer], "attn", None)
    if isinstance(attention, nn.MultiheadAttention):
        seen = _seen_by_torch(attention)
    elif hasattr(attention, "fused_attn") and isinstance(getattr(attention, "attn_drop", None), nn.Dropout):
        seen = _seen_by_timm(attention)
    else:
        raise UserError(f"{tower.name}: {type(attention).__name__} shows no attention weights")
    with seen as weights:
        read_tokens(tower, pixels, layer)
    return weights[0]


def attention_map(weights: Tensor, num_patches: int) -> Tensor:
    """What the class token takes of each patch; where there is none, what patches take on average.

    Args:
        weights: (B, H, L, L).
        num_patches: N; the prefix, if any, begins with the class token.

    Returns:
        (B, N), the mean over heads.
    """
    of_patches = weights.mean(dim=1)[:, :, -num_patches:]  # (B, L, N)
    return of_patches[:, 0] if weights.shape[-1] > num_patches else of_patches.mean(dim=1)


@contextmanager
def _seen_by_timm(attention: Any) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    handle = attention.attn_drop.register_forward_hook(lambda module, inputs, output: found.append(inputs[0]))
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        yield found
    finally:
        attention.fused_attn = fused
        handle.remove()


@contextmanager
def _seen_by_torch(attention: nn.MultiheadAttention) -> Iterator[list[Tensor]]:
    """open_clip's blocks ask for no weights, so the layer is asked again with what it was given."""
    found: list[Tensor] = []

    def ask(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        weights = attention.forward(*inputs, **{**keywords, "need_weights": True, "average_attn_weights": False})[1]
        assert weights is not None  # they were asked for
        found.append(weights)

    handle = attention.register_forward_hook(ask, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
