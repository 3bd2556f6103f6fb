"""The conditioning of a generator, in the form that its network takes, and its combination with a constant prompt."""

# B batch, T tokens of an image, L of the prompt, K context tokens, W their width, P width of the vector beside them

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Combine = Literal["replace", "add", "concatenate", "broadcast"]


@dataclass(frozen=True)
class Conditioning:
    """The context of the cross-attention, and the vector that some networks take beside it.

    tokens: (B, K, W).
    pooled: (B, P): SDXL's pooled text, un-CLIP's class embedding, the vector of a flow transformer; None for others.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """Return the conditioning with `function` applied to both tensors."""
        return Conditioning(function(self.tokens), None if self.pooled is None else function(self.pooled))

    def to(self, *args: Any) -> Conditioning:
        """Return it on another device or in another dtype."""
        return self.map(lambda x: x.to(*args))

    def repeat_interleave(self, repeats: int) -> Conditioning:
        """Repeat each sample's conditioning, (B * repeats, ...); repeats of a sample are adjacent."""
        return self.map(lambda x: x.repeat_interleave(repeats, dim=0))

    def mismatched(self, num_choices: int = 1) -> Conditioning:
        """Return for each sample the conditioning of the one before it; a sample has `num_choices` adjacent rows."""
        return self.map(lambda x: x.roll(num_choices, dims=0))

    def expand(self, num_samples: int) -> Conditioning:
        """Expand the conditioning of one sample (B = 1) to `num_samples`."""
        return self.map(lambda x: x.expand(num_samples, *x.shape[1:]))


def combine_with_prompt(image: Conditioning, prompt: Conditioning | None, how: Combine) -> Conditioning:
    """Combine the conditioning of images with that of a constant prompt.

    Args:
        image: of each image; without tokens (T = 0) for networks conditioned on the vector only.
        prompt: B = 1; None returns `image`.
        how: `replace`: the image tokens replace the text states. `add`: elementwise if there are as many of both, else
            the states' mean is added to each token, as in DIVA's code (77 tokens, other numbers). `concatenate`: the
            image tokens follow the states. A vector cannot be concatenated, so `concatenate` keeps the prompt's.
            `broadcast`: the image token is added to each of the states, as in DCR's code; for one token only.
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
    return image + (states if states.shape[1] == image.shape[1] else states.mean(dim=1, keepdim=True))


def _pooled(image: Tensor | None, prompt: Tensor | None, how: Combine) -> Tensor | None:
    if image is None or prompt is None:
        return prompt if image is None else image
    if how in ("add", "broadcast"):
        return image + prompt
    return prompt if how == "concatenate" else image
