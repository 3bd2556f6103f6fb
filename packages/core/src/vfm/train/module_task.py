"""Any module with a loss function as a `Task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vfm.config import UserError
from vfm.train.task import Metrics, Task

LossFunction = Callable[[Any, Any], Tensor | tuple[Tensor, Mapping[str, Tensor | float]]]
"""`loss(model, batch)` returns a scalar, or a scalar and other metrics by name."""


class ModuleTask(Task[Any]):
    """A module that is trained by a loss function.

    Attributes:
        model: the module.
        loss: `loss(model, batch)`; a module's own parameters are trained too.
    """

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, inputs: Any) -> tuple[Tensor, Metrics]:
        """Return the loss of one micro-batch, and its metrics.

        Raises:
            UserError: the function returns something else, or a loss without a gradient.
        """
        made = self.loss(self.model, inputs)
        loss, metrics = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
        if not isinstance(loss, Tensor) or loss.ndim or not isinstance(metrics, Mapping):
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"loss: expected a scalar tensor, or one with a dict of metrics, got {got}")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise UserError("loss: it has no gradient; compute it from the model's outputs, without detach or no_grad")
        return loss, {str(name): _scalar(name, value, loss.device) for name, value in metrics.items()}

    def encoder(self) -> Any:
        """Return the module."""
        return self.model


def _scalar(name: str, value: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(value, Tensor) and not value.ndim:
        return value.detach()
    if isinstance(value, int | float):
        return torch.tensor(float(value), device=device)
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise UserError(f"loss: metric {name!r}: expected a number, got {got}")
