"""What a method writes to be trained: the task owns the loss, the loop (`vfm.train.fit`) owns the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from torch import Tensor, nn

from vfm.artifacts import Artifact
from vfm.data.loader import Batch
from vfm.eval.encode import ImageEncoder

Metrics = dict[str, Tensor]
"""Scalars on the device by name: `accuracy` is logged as `train/accuracy`, a name with a `/` as it is."""

M = TypeVar("M", bound=nn.Module)


class Call(Protocol):
    """`Task.forward` as the loop runs it: under autocast, and through DDP where there are several processes."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Metrics]: ...


@dataclass
class ParamGroup:
    """Parameters that share a learning rate and a weight decay."""

    params: list[nn.Parameter]
    lr_scale: float = 1.0  # times the scheduled rate
    weight_decay: float | None = None  # None: the plan's


class Frozen(Generic[M]):
    """Holds a model that a task uses but does not train: a teacher, a UNet, a VAE.

    A task that keeps such a model as `self.teacher = Frozen(model)` moves it along to the device, but does not
    register it: it is in no checkpoint, no average, no optimiser and no DDP bucket. Its parameters take no gradient
    and it stays in eval mode; gradients still flow through it to its inputs.
    """

    def __init__(self, module: M) -> None:
        self.module: M = module.requires_grad_(False).eval()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Task(nn.Module):
    """A loss over a model, ready for `fit`.

    Example, a linear probe::

        class Probe(Task):
            def __init__(self, backbone, width, num_classes):
                super().__init__()
                self.backbone = Frozen(backbone)
                self.head = nn.Linear(width, num_classes)

            def forward(self, batch):
                logits = self.head(self.backbone(batch["images"]))
                accuracy = (logits.argmax(-1) == batch["labels"]).float().mean()
                return F.cross_entropy(logits, batch["labels"]), {"accuracy": accuracy}
    """

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The mean loss of one micro-batch, and what else is worth a curve. Everything trained is used in here."""

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """One optimiser step's losses and gradients: by default the mean over micro-batches, by number of samples.

        Override it where the loss is not a mean over samples. Contrastive losses first run their encoders without
        gradient over all micro-batches, then replay each one: `reseed(i)` before either gives both the same random
        draws (dropout, drop path, noise).

        Args:
            call: runs `forward` as the loop wants it run.
            micro_batches: this process' share of the step, on the device.
            backward: adds a loss' gradients. The last call must belong to the last micro-batch: gradients are
                averaged over the processes there.
            reseed: to be called with the micro-batch's number before each forward.

        Returns:
            `loss` and the other metrics, detached; the same names in every step.
        """
        sizes = [len(batch["keys"]) for batch in micro_batches]
        totals: Metrics = {}
        for index, batch in enumerate(micro_batches):
            reseed(index)
            loss, metrics = call(batch)
            share = sizes[index] / sum(sizes)
            backward(loss * share)
            for name, value in {**metrics, "loss": loss}.items():
                part = value.detach().float() * share
                totals[name] = totals[name] + part if name in totals else part
        return totals

    def before_step(self, step: int) -> None:
        """Called before each optimiser step with its number (the first is 0), e.g. to end a noise before the end."""
        return

    def after_step(self) -> None:
        """Called after each optimiser step, e.g. to clamp a temperature."""
        return

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed, besides biases and norms: what the parts (timm, open_clip) say."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if prefix and callable(getattr(module, "no_weight_decay", None))
            for name in module.no_weight_decay()
        }

    def parameter_groups(self) -> list[ParamGroup]:
        """What is trained, and how: by default everything; vectors, scalars and `no_weight_decay()` are not decayed."""
        exempt = self.no_weight_decay()
        trained = [(name, param) for name, param in self.named_parameters() if param.requires_grad]
        decayed = [param for name, param in trained if param.ndim > 1 and name not in exempt]
        plain = [param for name, param in trained if not (param.ndim > 1 and name not in exempt)]
        groups = [ParamGroup(decayed), ParamGroup(plain, weight_decay=0.0)]
        return [group for group in groups if group.params]

    def encoder(self) -> ImageEncoder:
        """The model in training as a training's `evals` judge it; they put it into evaluation mode and back."""
        raise NotImplementedError(f"{type(self).__name__} does not say what there is to judge")

    def kernels(self, choice: Literal["auto", "reference", "triton"]) -> AbstractContextManager[str]:
        """Puts fused kernels into the models while they are trained, as `runtime.kernels` says; yields what runs.

        Called on the device. Parameters, buffers and their names stay as they are. By default there are no kernels.

        Raises:
            ValueError: `triton`, and they cannot run; says why.
        """
        if choice == "triton":
            raise ValueError(f"{type(self).__name__} has no kernels; use auto")
        return nullcontext("none")

    def padded(self) -> AbstractContextManager[str]:
        """Stores weights of the models wider while they are trained, as `runtime.pad_widths` asks; yields which.

        Parameters stay the same ones, state dicts have the true shapes. By default nothing is padded.
        """
        return nullcontext(f"nothing, {type(self).__name__} says not how")

    def export(self, directory: Path) -> Artifact:
        """Writes the trained model as an artifact. With `ema_decay` the weights are the averaged ones after `fit`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is exported")

    def frozen(self) -> Iterator[Frozen[Any]]:
        """The models held in `Frozen`, here and in submodules."""
        for module in self.modules():
            yield from (value for value in vars(module).values() if isinstance(value, Frozen))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Task:
        """What `.to()` and `.cuda()` go through: the frozen models move along."""
        for held in self.frozen():
            held.module._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
