"""The adapters' layers: from the tower's tokens to a generator's context, and to the vector beside it."""

# B batch, T tokens, E width of CLIP's tokens, D width of the joint space, W width of the context, P of the vector

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from vfm_diva.condition import Seen
from vfm_diva.condition_map import unit_rms
from vfm_diva.networks import Wants
from vfm_diva.told import Told


class AdapterNet(nn.Module):
    """One map for every token, and one from the embedding to the vector, where the generator takes one.

    tokens: (B, T, E) to (B, T, W).
    pooled: (B, D) to (B, P), or None.
    """

    def __init__(self, tokens: nn.Module, pooled: nn.Module | None) -> None:
        super().__init__()
        self.tokens, self.pooled = tokens, pooled

    def forward(self, seen: Seen) -> Told:
        """What is told; tokens and embeddings are brought to a root mean square of 1 before."""
        tokens = self.tokens(unit_rms(seen.tokens))
        return Told(tokens, self.pooled(unit_rms(seen.embeds)) if self.pooled else None)


def build_adapter(kind: Literal["linear", "mlp"], wants: Wants, *, width: int, embed_dim: int, seed: int) -> AdapterNet:
    """An adapter with random weights.

    Args:
        kind: one linear layer, or norm, linear layer, GELU, linear layer.
        wants: what the generator takes.
        width: E.
        embed_dim: D.
        seed: draws the weights; torch's own generator is left as it was.
    """

    def layers(wide: int, out: int) -> nn.Module:
        if kind == "linear":
            return nn.Linear(wide, out)
        return nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, out), nn.GELU(), nn.Linear(out, out))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = layers(width, wants.context_width)
        return AdapterNet(tokens, layers(embed_dim, wants.pooled_width) if wants.pooled_width else None)
