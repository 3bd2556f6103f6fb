"""What a method implements to be trained: the task owns the loss, the loop (`vfm.train.fit`) owns the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from torch import Tensor, nn

from vfm.data.loading.batch import Batch, Inputs
from vfm.interfaces import Artifact
from vfm.train.trained import ParamGroup, TrainedTower, keep_frozen_in_eval, parameter_groups

Metrics = dict[str, Tensor]
"""Scalars on the device by name: `accuracy` is logged as `train/accuracy`, a name with a `/` unchanged."""

M = TypeVar("M", bound=nn.Module)


class Call(Protocol):
    """Runs a task's method on a micro-batch: under autocast, and through DDP if there are several processes."""

    def __call__(
        self, batch: Batch[Any], method: Callable[..., tuple[Tensor, Metrics]] | None = None, /, *args: Any
    ) -> tuple[Tensor, Metrics]:
        """Return `method(batch.inputs, *args)`, a loss and metrics; `forward` by default."""
        ...


class Frozen(Generic[M]):
    """Holds a model that a task uses but does not train: a teacher, a UNet, a VAE.

    A task that keeps such a model as `self.teacher = Frozen(model)` moves it to the device with itself, but does not
    register it: no checkpoint, average, optimizer or DDP bucket contains it. Its parameters take no gradient and it
    stays in eval mode; gradients still flow through it to its inputs.

    Args:
        module: the model.
        steps_only: whether only the task's training steps use it, no evaluation. `fit` then stores its matrices in the
            precision of the training, which autocast would otherwise compute at every pass.
    """

    def __init__(self, module: M, *, steps_only: bool = False) -> None:
        self.module: M = module.requires_grad_(False).eval()
        self.steps_only = steps_only

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output."""
        return self.module(*args, **kwargs)


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
        is_log_step: whether this is the last step before a line of the log; `fit` sets it. A metric that costs time may
            be left out of the other steps: the log then has its value at this step. Losses, and metrics of every step,
            are logged as means over the steps.
        towers: what is trained by layer; what of them is frozen stays in evaluation mode.
        decay_vectors: decay biases, norms and positions too.
    """

    is_log_step: bool = True
    towers: Sequence[TrainedTower] = ()
    decay_vectors: bool = False

    @abstractmethod
    def forward(self, inputs: Inputs) -> tuple[Tensor, Metrics]:
        """Return the mean loss of one micro-batch, and other metrics. It must use every trained parameter."""

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch[Inputs]],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """Compute the losses and gradients of one optimizer step; by default the mean over the samples.

        Override it where the loss is not a mean over samples. Contrastive losses first run their encoders without
        gradient over all micro-batches, then replay each one: `reseed(i)` before either gives both the same random
        draws (dropout, drop path, noise).

        Args:
            call: runs `forward`, or another method of the task, as the loop needs it.
            micro_batches: this process' share of the step, on the device.
            backward: adds a loss' gradients. The last call must belong to the last micro-batch, where gradients are
                averaged over the processes.
            reseed: must be called with the micro-batch's number before each forward pass.

        Returns:
            `loss` and the other metrics, detached; the same names in all processes, and in every step but for those of
            log steps only (`is_log_step`).
        """
        num_samples, weights = sum(map(len, micro_batches)), self.micro_batch_weights(micro_batches)
        totals: Metrics = {}
        for index, batch in enumerate(micro_batches):
            reseed(index)
            loss, metrics = call(batch)
            if weights is not None:
                loss = loss * weights[index]
            share = len(batch) / num_samples
            backward(loss * share)
            for name, value in {**metrics, "loss": loss}.items():
                part = value.detach().float() * share
                totals[name] = totals[name] + part if name in totals else part
        return totals

    def micro_batch_weights(self, micro_batches: Sequence[Batch[Inputs]]) -> Tensor | None:
        """Return a factor for each micro-batch's loss, where the mean is not one over samples; None: no factors."""
        return None

    def prepare(self, inputs: Inputs) -> Inputs:
        """Return a micro-batch's inputs, on the CPU, as they move to the device: without padding, for example."""
        return inputs

    def before_step(self, step: int) -> None:
        """Prepare an optimizer step (the first is 0), e.g. end patch dropout for the last steps."""
        return

    def after_step(self) -> None:
        """Adjust the model after an optimizer step, e.g. clamp a temperature."""
        return

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides biases and norms, as timm's parts list them."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if prefix and callable(getattr(module, "no_weight_decay", None))
            for name in module.no_weight_decay()
        }

    def parameter_groups(self) -> list[ParamGroup]:
        """Return what is trained: towers by layer, all else at the full rate.

        Vectors and scalars, such as biases and norms, and `no_weight_decay()` are not decayed.
        """
        exempt = self.no_weight_decay()
        named = self.named_parameters()
        return parameter_groups(
            ((param, self.decay_vectors or (param.ndim > 1 and name not in exempt)) for name, param in named),
            self.towers,
        )

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen of `towers` stays in evaluation mode, without drop path or new statistics."""
        super().train(mode)
        if self.towers:
            keep_frozen_in_eval(self)
        return self

    def encoder(self) -> Any:
        """Return the model in training (an `ImageEncoder`) for evaluations, which set and restore evaluation mode."""
        raise NotImplementedError(f"{type(self).__name__} has no encoder to evaluate")

    def kernels(self, choice: Literal["auto", "reference", "triton"]) -> AbstractContextManager[str]:
        """Use fused kernels in the models within the context, as `runtime.kernels` says; yield what runs.

        It is called on the device. Parameters, buffers and their names do not change. By default there are no kernels.

        Raises:
            ValueError: `triton`, and the kernels cannot run.
        """
        if choice == "triton":
            raise ValueError(f"{type(self).__name__} has no kernels; use auto")
        return nullcontext("none")

    def padded(self) -> AbstractContextManager[str]:
        """Store weights of the models wider within the context, for `runtime.pad_widths`; yield which ones.

        Parameters stay the same objects and state dicts have the original shapes. By default nothing is padded.
        """
        return nullcontext(f"nothing ({type(self).__name__} does not support it)")

    def export(self, directory: Path) -> Artifact:
        """Write the trained model as an artifact. With `ema_decay` the weights are the averaged ones after `fit`."""
        raise NotImplementedError(f"{type(self).__name__} has no export")

    def frozen(self) -> Iterator[Frozen[Any]]:
        """Yield the models held in `Frozen`, here and in submodules."""
        for module in self.modules():
            yield from (value for value in vars(module).values() if isinstance(value, Frozen))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the frozen models along: `.to()` and `.cuda()` call this."""
        for held in self.frozen():
            held.module._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
