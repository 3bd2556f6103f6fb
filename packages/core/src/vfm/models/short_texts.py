"""Texts through a causal tower without their padding, which nothing that is read off has seen."""

# N texts, L context length

from __future__ import annotations

from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.func import functional_call


def encode_short(module: nn.Module, tokens: Tensor, device: torch.device) -> Tensor:
    """What `module.encode_text` makes of token ids, (N, L) on the CPU, on the device; equal to it up to rounding.

    Where each position sees those before it alone and the one of the end token is read off, as in CLIP's own towers,
    only as many positions are computed as the longest of the texts has tokens. Any other tower gets all of them.
    """
    tower: Any = getattr(module, "text", module)
    prefix = "" if tower is module else "text."
    ends, shorter = _ends(tower, tokens), dict[str, Tensor]()
    if ends is not None:
        tokens = tokens[:, : int(ends.max()) + 1]
        used = slice(tokens.shape[1])
        shorter[f"module.{prefix}positional_embedding"] = tower.positional_embedding[used]
        shorter[f"module.{prefix}attn_mask"] = tower.attn_mask[used, used]
    read: Tensor = functional_call(_Reading(module), shorter, (tokens.to(device),))
    return read


class _Reading(nn.Module):
    """A model as what it makes of texts."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, tokens: Tensor) -> Any:
        return self.module.encode_text(tokens)  # type: ignore[operator]


def _ends(tower: Any, tokens: Tensor) -> Tensor | None:
    """The position that is read off of each text, (N,); None where others may see or be what is behind it."""
    if type(tower) is open_clip.CLIP:
        pooling, end_token = tower.text_pool_type, tower.text_eos_id
    elif type(tower) is TextTransformer and tower.cls_emb is None and not tower.output_tokens:
        pooling, end_token = tower.pool_type, tower.eos_id
    else:
        return None
    if tower.attn_mask is None or pooling not in ("argmax", "eos"):
        return None
    return (tokens if pooling == "argmax" else (tokens == end_token).int()).argmax(dim=-1)
