"""Conditioning of a generator, in the form that its network takes, and its combination with a constant prompt."""

# B batch, T tokens of an image, L of the prompt, K context tokens, W their width, P width of the additional vector

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Combine = Literal["replace", "add", "concatenate", "broadcast"]


@dataclass(frozen=True)
class Conditioning:
    """Context of the cross-attention, and an additional vector for networks that take one.

    Attributes:
        tokens: Context tokens, (B, K, W).
        pooled: Additional vector, (B, P): SDXL's pooled text, un-CLIP's class embedding, or the vector of a flow
            transformer. Other networks have None.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """Apply `function` to both tensors."""
        pooled = None if self.pooled is None else function(self.pooled)
        return Conditioning(function(self.tokens), pooled)

    def to(self, *args: Any) -> Conditioning:
        """Move both tensors to another device or dtype."""
        return self.map(lambda x: x.to(*args))

    def repeat_interleave(self, repeats: int) -> Conditioning:
        """Repeat each sample's conditioning, (B * repeats, ...). Repeats of a sample are adjacent."""
        return self.map(lambda x: x.repeat_interleave(repeats, dim=0))

    def mismatched(self, num_choices: int = 1) -> Conditioning:
        """Replace each sample's conditioning by the previous sample's. A sample has `num_choices` adjacent rows."""
        # A rotation gives each sample another image's tokens, and each set of tokens is used once.
        return self.map(lambda x: x.roll(num_choices, dims=0))

    def expand(self, num_samples: int) -> Conditioning:
        """Expand the conditioning of a single sample (B = 1) to `num_samples`."""
        return self.map(lambda x: x.expand(num_samples, *x.shape[1:]))


def combine_with_prompt(image: Conditioning, prompt: Conditioning | None, how: Combine) -> Conditioning:
    """Combine the conditioning of images with a constant prompt.

    Args:
        image: Conditioning of each image, without tokens (T = 0) for networks conditioned only on the vector.
        prompt: Conditioning of the prompt, B = 1. None returns `image`.
        how: Rule. `replace`: the image tokens replace the text states. `add`: elementwise if there are as many of both,
            else the states' mean is added to each token, as in DIVA's code (77 tokens, other numbers). `concatenate`:
            the image tokens follow the states. A vector cannot be concatenated, so `concatenate` keeps the prompt's.
            `broadcast`: the image token is added to each of the states, as in DCR's code, for one token only.
    """
    if prompt is None:
        return image
    prompt = prompt.expand(len(image))
    return Conditioning(_tokens(image.tokens, prompt.tokens, how), _pooled(image.pooled, prompt.pooled, how))


def _tokens(image: Tensor, states: Tensor, how: Combine) -> Tensor:
    if not image.shape[1]:
        return states
    if how == "replace":
        return image
    if how == "concatenate":
        return torch.cat([states, image], dim=1)  # (B, L + T, W)
    if how == "broadcast":
        return states + image
    has_equal_length = states.shape[1] == image.shape[1]
    # Token by token only if both have as many. Otherwise the prompt's mean shifts all tokens of the image.
    return image + (states if has_equal_length else states.mean(dim=1, keepdim=True))


def _pooled(image: Tensor | None, prompt: Tensor | None, how: Combine) -> Tensor | None:
    if image is None or prompt is None:
        return prompt if image is None else image
    if how in ("add", "broadcast"):
        return image + prompt
    return prompt if how == "concatenate" else image
