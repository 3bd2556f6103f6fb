"""The adapters: layers from a tower's tokens to the context of a generator, and to the vector beside it."""

# B batch, T tokens, E width of CLIP's tokens, D width of the joint space, W width of the context, P of the vector

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vfm_diva.condition import ImageFeatures
from vfm_diva.condition_map import unit_rms
from vfm_diva.conditioning import Conditioning
from vfm_diva.networks import NetworkInputs
from vfm_diva.parts import LinearAdapter, MlpAdapter

Layers = Callable[[int, int], nn.Module]
"""Makes the layers from an input width to an output width."""


class AdapterNet(nn.Module):
    """A map that is applied to each token, and one from the embedding to the vector, if the generator takes one.

    tokens: (B, T, E) to (B, T, W).
    pooled: (B, D) to (B, P), or None.
    """

    def __init__(self, tokens: nn.Module, pooled: nn.Module | None) -> None:
        super().__init__()
        self.tokens, self.pooled = tokens, pooled

    def forward(self, features: ImageFeatures) -> Conditioning:
        """Return the conditioning; tokens and embeddings are first scaled to a root mean square of 1."""
        tokens = self.tokens(unit_rms(features.tokens))
        return Conditioning(tokens, self.pooled(unit_rms(features.embeds)) if self.pooled else None)


def build_linear(config: LinearAdapter, inputs: NetworkInputs, *, width: int, embed_dim: int, seed: int) -> AdapterNet:
    """Return an adapter of one linear layer, as `build_adapter`."""
    return build_adapter(nn.Linear, inputs, width=width, embed_dim=embed_dim, seed=seed)


def build_mlp(config: MlpAdapter, inputs: NetworkInputs, *, width: int, embed_dim: int, seed: int) -> AdapterNet:
    """Return an adapter of layer norm, linear layer, GELU and linear layer, as `build_adapter`."""

    def layers(wide: int, out: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, out), nn.GELU(), nn.Linear(out, out))

    return build_adapter(layers, inputs, width=width, embed_dim=embed_dim, seed=seed)


def build_adapter(layers: Layers, inputs: NetworkInputs, *, width: int, embed_dim: int, seed: int) -> AdapterNet:
    """Return an adapter with random weights; torch's global generator does not change.

    Args:
        layers: makes the layers of each of the two maps.
        inputs: of the generator's network.
        width: E.
        embed_dim: D.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = layers(width, inputs.context_width)
        return AdapterNet(tokens, layers(embed_dim, inputs.pooled_width) if inputs.pooled_width else None)
