"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """The exponential moving average of the trained weights: `average = decay * average + (1 - decay) * weights`.

    It starts at the initial weights. After s steps the decay is at most (1 + s) / (10 + s), as in TensorFlow. Without
    this rule, 120 steps with a decay of 0.99 would export an average that is 30 % random initialisation.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self.average: dict[str, Tensor] = {}
        self.decay = decay
        for name, param in module.named_parameters():
            if param.requires_grad:
                self.weights[name] = param
                self.average[name] = param.detach().clone()

    def update(self, step: int) -> None:
        """Add the weights after optimizer step `step` (the first is 0) to the average."""
        # torch's multi-tensor update needs a few launches for all weights. It ignores its last argument, a count.
        update_average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
        update_average(list(self.average.values()), [p.detach() for p in self.weights.values()], 0)

    def load(self, average: dict[str, Tensor]) -> None:
        """Restore the average from a checkpoint. A weight without an average was not trained, and is used instead."""
        for name, value in self.average.items():
            value.copy_(average.get(name, self.weights[name].detach()))

    @contextmanager
    def as_weights(self) -> Iterator[None]:
        """Use the average as the weights within the context, and restore the weights bit for bit afterwards."""
        weights = {name: param.detach().clone() for name, param in self.weights.items()}
        self.copy_to_weights()
        try:
            yield
        finally:
            _copy(weights, self.weights)

    def copy_to_weights(self) -> None:
        """Replace the weights by the average."""
        _copy(self.average, self.weights)


@torch.no_grad()
def _copy(values: dict[str, Tensor], params: dict[str, nn.Parameter]) -> None:
    for name, param in params.items():
        param.copy_(values[name])
