"""The interface of a training method. A task computes the loss, and `vfm.train.fit` does the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfm.data.loading.batch import Batch, Inputs
from vfm.interfaces import Artifact
from vfm.train.trained import ParamGroup, TrainedTower, keep_frozen_in_eval, parameter_groups

Metrics = dict[str, Tensor]
"""Scalars on the device by name: `accuracy` is logged as `train/accuracy`, a name with a `/` unchanged."""

M = TypeVar("M", bound=nn.Module)


class Call(Protocol):
    """Runs a method of a task on a micro-batch, under autocast, and through DDP if there are several processes."""

    def __call__(
        self, batch: Batch[Any], method: Callable[..., tuple[Tensor, Metrics]] | None = None, /, *args: Any
    ) -> tuple[Tensor, Metrics]:
        """Compute `method(batch.inputs, *args)`, a loss and metrics, where `method` is `forward` by default."""
        ...


class Frozen(Generic[M]):
    """Holds a model that a task uses but does not train, such as a teacher, a UNet or a VAE.

    A task that keeps such a model as `self.teacher = Frozen(model)` moves it to its device, but does not register it.
    No checkpoint, average, optimizer or DDP bucket contains it. Its parameters take no gradient and it stays in eval
    mode. Gradients still flow through it to its inputs.

    Args:
        module: The model.
        steps_only: Whether only training steps use it, but no evaluation. `fit` then stores its matrices in the
            precision of the training, so that autocast does not convert them in every pass.
    """

    def __init__(self, module: M, *, steps_only: bool = False) -> None:
        self.module: M = module.requires_grad_(False).eval()
        self.steps_only = steps_only

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        return self.module(*args, **kwargs)


def normalized_weights(weights: Tensor) -> Tensor:
    """Divide the weights of this process' samples, (n,), by their mean over all processes.

    All processes have equally many samples.
    """
    return weights / _mean_of_all(weights.mean())


def relative_weights(totals: Tensor, micro_batches: Sequence[Batch[Any]]) -> Tensor:
    """Compute the factors with which the weighted means of micro-batches add up to the weighted mean of the whole step.

    Args:
        totals: Sum of the weights in each micro-batch of this process.
        micro_batches: This process' share of the step. All processes have equally many samples.
    """
    sizes = torch.stack([totals.new_full((), len(batch)) for batch in micro_batches])  # filled on the device
    return totals / sizes / _mean_of_all(totals.sum() / sizes.sum())


def _mean_of_all(mean: Tensor) -> Tensor:
    """Average a mean over the processes. It is at least 1e-9, so that it can be a divisor."""
    if dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean.clamp(min=1e-9)


class Task(nn.Module, Generic[Inputs]):
    """A loss over a model, ready for `fit`.

    Example, a linear probe::

        @dataclass(frozen=True)
        class LabeledImages:
            images: Tensor
            labels: Tensor

        class Probe(Task[LabeledImages]):
            def __init__(self, backbone, width, num_classes):
                super().__init__()
                self.backbone = Frozen(backbone)
                self.head = nn.Linear(width, num_classes)

            def forward(self, inputs):
                logits = self.head(self.backbone(inputs.images))
                accuracy = (logits.argmax(-1) == inputs.labels).float().mean()
                return F.cross_entropy(logits, inputs.labels), {"accuracy": accuracy}

    Attributes:
        is_log_step: Whether this is the last step before a line of the log. `fit` sets it. An expensive metric may be
            left out of the other steps, and the log then has its value at this step. Losses and metrics of every step
            are logged as means over the steps.
        towers: Models that are trained by layer. Their frozen parts stay in evaluation mode.
        decay_vectors: Whether to decay biases, norms and positions too.
    """

    is_log_step: bool = True
    towers: Sequence[TrainedTower] = ()
    decay_vectors: bool = False

    @abstractmethod
    def forward(self, inputs: Inputs) -> tuple[Tensor, Metrics]:
        """Compute the mean loss of a micro-batch, and other metrics. It must use every trained parameter."""

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch[Inputs]],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """Compute the loss and the gradients of an optimizer step, by default the mean over the samples.

        Override it if the loss is not a mean over samples. Contrastive losses first run their encoders without gradient
        over all micro-batches, then replay each one. Calling `reseed(i)` before each of the two passes gives them the
        same random draws (dropout, drop path, noise).

        Args:
            call: Runs `forward`, or another method of the task, as the loop requires.
            micro_batches: This process' share of the step, on the device.
            backward: Adds the gradients of a loss. The last call must belong to the last micro-batch, because gradients
                are averaged over the processes then.
            reseed: Must be called with the number of the micro-batch before each forward pass.

        Returns:
            `loss` and the other metrics, detached. All processes return the same names, and so does every step, except
            for metrics of log steps (`is_log_step`).
        """
        num_samples = sum(map(len, micro_batches))
        weights = self.micro_batch_weights(micro_batches)
        totals: Metrics = {}
        for index, batch in enumerate(micro_batches):
            reseed(index)
            loss, metrics = call(batch)
            if weights is not None:
                loss = loss * weights[index]
            # By samples, not by micro-batches, because the last micro-batch may be smaller.
            share = len(batch) / num_samples
            backward(loss * share)
            for name, value in {**metrics, "loss": loss}.items():
                part = value.detach().float() * share
                totals[name] = totals[name] + part if name in totals else part
        return totals

    def micro_batch_weights(self, micro_batches: Sequence[Batch[Inputs]]) -> Tensor | None:
        """Compute a factor for the loss of each micro-batch, if the mean is not over samples. None means no factors."""
        return None

    def prepare(self, inputs: Inputs) -> Inputs:
        """Prepare the inputs of a micro-batch on the CPU before they move to the device, for example cut padding."""
        return inputs

    def before_step(self, step: int) -> None:
        """Prepare an optimizer step (the first is 0), for example end patch dropout for the last steps."""
        return

    def after_step(self) -> None:
        """Adjust the model after an optimizer step, for example clamp a temperature."""
        return

    def no_weight_decay(self) -> set[str]:
        """List the parameters without weight decay, besides biases and norms, from the lists of timm's modules."""
        names: set[str] = set()
        for prefix, module in self.named_modules():
            if prefix and callable(getattr(module, "no_weight_decay", None)):
                for name in module.no_weight_decay():
                    names.add(f"{prefix}.{name}")
        return names

    def parameter_groups(self) -> list[ParamGroup]:
        """Group the trained parameters by layer for towers, with all others at the full rate.

        Vectors and scalars, such as biases and norms, and `no_weight_decay()` are not decayed.
        """
        exempt = self.no_weight_decay()
        decayed = []
        for name, param in self.named_parameters():
            decayed.append((param, self.decay_vectors or (param.ndim > 1 and name not in exempt)))
        return parameter_groups(decayed, self.towers)

    def train(self, mode: bool = True) -> Self:
        """Set the mode. Frozen parts of `towers` stay in evaluation mode, without drop path or new statistics."""
        super().train(mode)
        if self.towers:
            keep_frozen_in_eval(self)
        return self

    def encoder(self) -> Any:
        """Return the model in training (an `ImageEncoder`) for evaluations. They set and restore evaluation mode."""
        raise NotImplementedError(f"{type(self).__name__} has no encoder to evaluate")

    def kernels(self, choice: Literal["auto", "reference", "triton"]) -> AbstractContextManager[str]:
        """Use fused kernels in the models within the context, as set by `runtime.kernels`, and yield their name.

        It is called when the task is on the device. Parameters, buffers and their names do not change. By default there
        are no kernels.

        Raises:
            ValueError: If `triton` is set, but the kernels cannot run.
        """
        if choice == "triton":
            raise ValueError(f"{type(self).__name__} has no kernels; use auto")
        return nullcontext("none")

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of weights within the context, for `runtime.pad_widths`, and yield a description of them.

        Parameters stay the same objects, and state dicts have the original shapes. By default nothing is padded.
        """
        return nullcontext(f"nothing ({type(self).__name__} does not support it)")

    def export(self, directory: Path) -> Artifact:
        """Write the trained model as an artifact. With `ema_decay`, the weights after `fit` are the averaged ones."""
        raise NotImplementedError(f"{type(self).__name__} has no export")

    def frozen(self) -> Iterator[Frozen[Any]]:
        """Yield the models held in `Frozen`, here and in submodules."""
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Frozen):
                    yield value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the frozen models too when `.to()` or `.cuda()` is called."""
        for held in self.frozen():
            held.module._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
