"""What a generator is told of pictures, in the form that its denoiser takes."""

# B batch, K context tokens, W their width, P width of the vector beside them

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Told:
    """The context of the cross attention, and the vector that some denoisers take beside it.

    tokens: (B, K, W).
    pooled: (B, P): SDXL's pooled text, un-CLIP's class embedding, the vector of a flow transformer; None for the rest.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> Told:
        """The same change to both parts."""
        return Told(change(self.tokens), None if self.pooled is None else change(self.pooled))

    def to(self, *where: Any) -> Told:
        """On another device or in another dtype."""
        return self.map(lambda x: x.to(*where))

    def repeated(self, times: int) -> Told:
        """Each picture's so many times in a row, (B times, ...)."""
        return self.map(lambda x: x.repeat_interleave(times, dim=0))

    def of_another(self) -> Told:
        """Each picture is told what belongs to the one before it in the batch."""
        return self.map(lambda x: x.roll(1, dims=0))

    def expanded(self, num_samples: int) -> Told:
        """What is told of one picture (B = 1), for so many."""
        return self.map(lambda x: x.expand(num_samples, *x.shape[1:]))
