"""A `Task` for any module and loss function."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from vfm.base import UserError
from vfm.data.loading.batch import Batch, SampleDraw
from vfm.train.task import Metrics, Task, relative_weights
from vfm.train.trained import trained_parameters

LossFunction = Callable[[Any, Any], Tensor | tuple[Tensor, Mapping[str, Tensor | float]]]
"""`loss(model, batch)` returns a scalar, or a scalar and other metrics by name."""
WeightFunction = Callable[[Any], Tensor | float]
"""`weight(batch)` returns the sum of the weights of a batch's samples."""
RESERVED = ("loss", "grad_norm", "lr")  # every training run logs these, as `train/loss`, ...


class ModuleTask(Task[Any]):
    """A module that is trained with a loss function.

    Submodules without trained parameters that are in evaluation mode stay in it, so that a frozen backbone keeps its
    batch statistics and has no dropout.

    Attributes:
        model: The module.
        loss: `loss(model, batch)`. If it is a module, its parameters are trained too.
        seed: Seed of the generators of Python and NumPy. A loss may use them, as Mixup does.
        weight: `weight(batch)` sums the weights of a batch of which the loss is the weighted mean. None: a plain mean.
    """

    def __init__(
        self, model: nn.Module, loss: LossFunction, seed: int = 0, weight: WeightFunction | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.seed = seed
        self.weight = weight
        self.fixed = list(filter(_is_fixed, model.modules()))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all submodules except the fixed ones."""
        super().train(mode)
        for part in self.fixed:
            part.eval()
        return self

    def before_step(self, step: int) -> None:
        """Seed the generators of Python and NumPy, as the loop seeds torch's."""
        # Index -1 is not a sample, so no sample of this step has this seed.
        seed = SampleDraw.of(self.seed, step, -1).seed
        random.seed(seed)
        np.random.seed(seed % 2**32)  # NumPy only accepts seeds of 32 bits

    def forward(self, inputs: Any) -> tuple[Tensor, Metrics]:
        """Compute the loss and the metrics of a micro-batch.

        Raises:
            UserError: If the function returns something else, or a loss without a gradient.
        """
        output = self.loss(self.model, inputs)
        loss, metrics = output if isinstance(output, tuple) and len(output) == 2 else (output, {})
        if not isinstance(loss, Tensor) or loss.ndim or not isinstance(metrics, Mapping):
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"loss: expected a scalar tensor, or one with a dict of metrics, got {got}")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise UserError("loss: it has no gradient; compute it from the model's outputs, without detach or no_grad")
        return loss, {str(name): _scalar(name, value, loss.device) for name, value in metrics.items()}

    def micro_batch_weights(self, micro_batches: Sequence[Batch[Any]]) -> Tensor | None:
        """Compute factors from the weights of the samples, so that micro-batches and processes change no result.

        Raises:
            UserError: If the sum of the weights is not a positive number.
        """
        if self.weight is None:
            return None
        totals = torch.stack([torch.as_tensor(self.weight(batch.inputs)).detach().float() for batch in micro_batches])
        if totals.ndim != 1 or not (totals > 0).all():
            got = f"a tensor of shape {tuple(totals.shape[1:])}" if totals.ndim != 1 else f"{totals.min().item():g}"
            raise UserError(f"weight: expected the sum of a batch's weights, a positive number, got {got}")
        return relative_weights(totals, micro_batches)

    def encoder(self) -> Any:
        """Return the module for evaluations."""
        return self.model


def _is_fixed(part: nn.Module) -> bool:
    return bool(list(part.parameters())) and not part.training and not trained_parameters(part)


def _scalar(name: str, value: Tensor | float, device: torch.device) -> Tensor:
    if name in RESERVED or name.startswith("train/"):
        raise UserError(f"loss: metric {name!r}: the training logs its own; give another name, without train/")
    if isinstance(value, Tensor) and not value.ndim:
        return value.detach().to(device)
    if isinstance(value, int | float | np.number):
        return torch.tensor(float(value), device=device)
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise UserError(f"loss: metric {name!r}: expected a number, got {got}")
