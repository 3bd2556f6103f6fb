"""Layers from a tower's tokens to the context of a generator, and to the additional vector."""

# B batch, T tokens, E width of CLIP's tokens, D width of the joint space, W width of the context, P of the vector

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vfm_diva.generator.condition_map import unit_rms
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.networks import NetworkInputs
from vfm_diva.parts.parts import LinearAdapter, MlpAdapter
from vfm_diva.tune.condition import ImageFeatures

Layers = Callable[[int, int], nn.Module]
"""Makes the layers from an input width to an output width."""


class AdapterNet(nn.Module):
    """Map from image features to the generator's condition.

    Attributes:
        tokens: (B, T, E) to (B, T, W). Missing if the generator takes the vector alone.
        pooled: (B, D) to (B, P). Missing if the generator takes no vector.
    """

    def __init__(self, tokens: nn.Module | None, pooled: nn.Module | None, *, unit_scale: bool = True) -> None:
        super().__init__()
        self.tokens = tokens
        self.pooled = pooled
        self.unit_scale = unit_scale

    def forward(self, features: ImageFeatures) -> Conditioning:
        """Compute the conditioning. With `unit_scale` tokens and embeddings first get a root mean square of 1."""
        inputs = features.tokens
        embeds = features.embeds
        if self.unit_scale:
            inputs = unit_rms(inputs)
            embeds = unit_rms(embeds)
        tokens = inputs[:, :0, :0] if self.tokens is None else self.tokens(inputs)
        if self.pooled is None:
            return Conditioning(tokens)
        repeats = len(tokens) // len(embeds)  # tokens may be drawn for each time
        return Conditioning(tokens, self.pooled(embeds).repeat_interleave(repeats, dim=0))


def build_linear(config: LinearAdapter, inputs: NetworkInputs, *, width: int, embed_dim: int, seed: int) -> AdapterNet:
    """Build an adapter that is a linear layer.

    Args:
        config: Settings of the adapter.
        inputs: Inputs of the generator's network.
        width: Width E of the tokens.
        embed_dim: Width D of the image embedding.
        seed: Seed of the weights.
    """
    return build_adapter(nn.Linear, inputs, width=width, embed_dim=embed_dim, seed=seed, unit_scale=config.unit_scale)


def build_mlp(config: MlpAdapter, inputs: NetworkInputs, *, width: int, embed_dim: int, seed: int) -> AdapterNet:
    """Build an adapter of layer norm, linear layer, GELU and linear layer.

    Args:
        config: Settings of the adapter.
        inputs: Inputs of the generator's network.
        width: Width E of the tokens.
        embed_dim: Width D of the image embedding.
        seed: Seed of the weights.
    """

    def layers(wide: int, out: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, out), nn.GELU(), nn.Linear(out, out))

    return build_adapter(layers, inputs, width=width, embed_dim=embed_dim, seed=seed, unit_scale=config.unit_scale)


def build_adapter(
    layers: Layers, inputs: NetworkInputs, *, width: int, embed_dim: int, seed: int, unit_scale: bool = True
) -> AdapterNet:
    """Build an adapter with random weights. Torch's global generator does not change.

    Args:
        layers: Makes the layers of each of the two maps.
        inputs: Inputs of the generator's network.
        width: Width E of CLIP's tokens.
        embed_dim: Width D of the joint space.
        seed: Seed of the weights.
        unit_scale: Bring the inputs to a root mean square of 1.
    """
    # The run's random state does not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = layers(width, inputs.context_width) if inputs.context_width else None
        pooled = layers(embed_dim, inputs.pooled_width) if inputs.pooled_width else None
        return AdapterNet(tokens, pooled, unit_scale=unit_scale)
