"""Puts our ops into a model of timm or open_clip, by its classes' own forward, and takes them out again."""

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Self

from torch import nn

from vfm_kernels.dispatch import Kernels, fused, use_kernels


@dataclass
class Acceleration:
    """What was done to a model's layers to make it faster. As a context, or by `undo`, the model is made what it was.

    Attributes:
        replaced: name of a layer -> the op it takes, or how it is stored.
        kept: name of a layer of a known class -> why it was left alone.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    _undo: ExitStack = field(default_factory=ExitStack, repr=False)

    def replace(self, name: str, layer: nn.Module, wanted: type[nn.Module], op: str) -> None:
        """Gives a layer the forward of a subclass of its class."""
        self.on_undo(setattr, layer, "__class__", type(layer))
        self.replaced[name] = op
        layer.__class__ = wanted

    def on_undo(self, call: Callable[..., Any], *arguments: Any) -> None:
        """What takes a change back; the last change goes first."""
        self._undo.callback(call, *arguments)

    def undo(self) -> None:
        """Makes every layer what it was."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        counts = sorted(Counter(self.replaced.values()).items())
        told = ", ".join(f"{op} in {count} layer{'s' * (count > 1)}" for op, count in counts)
        return told or "the libraries' own forward"


def accelerate(model: nn.Module) -> Acceleration:
    """Lets attention, SwiGLU and residual sums of a model's layers run in one kernel each, where kernels run.

    A layer becomes one of a subclass of its class with another forward. Its parameters, hooks and names, and so
    optimisers, checkpoints, DDP and copies, see no difference; hooks on a block's second norm alone no longer fire.
    What is taken follows `use_kernels` and the model's device: on a CPU `auto` replaces nothing and costs nothing.

    Args:
        model: holds layers of timm (`Eva`, `VisionTransformer`) or open_clip, on its device.

    Returns:
        What was replaced, what was not and why; it undoes itself as a context.

    Raises:
        ValueError: kernels are to be taken and cannot run here, or the model has no layer that could take one.
    """
    done = Acceleration()
    if not fused(*list(model.parameters())[:1]):
        return done
    for library in model_libraries():
        ours = dict(library.FUSED.values())
        for name, layer in model.named_modules():
            if type(layer) in ours:  # widened by `pad_swiglu`, or replaced before
                done.replaced[name] = ours[type(layer)]
            if type(layer) not in library.FUSED:
                continue
            if (reason := library.reason_against(layer, model)) is not None:
                done.kept[name] = reason
                continue
            done.replace(name, layer, *library.FUSED[type(layer)])
    if not done.replaced:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in done.kept.items())
        raise ValueError(f"{type(model).__name__} has no layer that takes a kernel ({reasons or 'none is known'})")
    return done


@contextmanager
def accelerated(choice: Kernels, *models: nn.Module) -> Iterator[str]:
    """`use_kernels` and `accelerate` at once, for the time of a training; yields what runs, in words.

    With `auto`, models without a layer that could take a kernel keep their forward.

    Raises:
        ValueError: `triton`, and it cannot run or no layer could take it.
    """
    together = nn.ModuleList(models)
    with use_kernels(choice):
        try:
            done = accelerate(together)
        except ValueError:
            if choice == "triton":
                raise
            done = Acceleration()
        with done:
            yield str(done)


def subset_drop_path(model: nn.Module) -> Acceleration:
    """Lets timm's blocks drop paths by running each branch on part of the batch, on any device (`residual_of_subset`).

    The share of the branches that is dropped is saved, forward and backward. Opt in to it: the law is a little other
    than drop path's, and such a block keeps the rest of its forward, so `accelerate` leaves its sums alone.

    Raises:
        ValueError: the model has no block of timm's with a drop path rate above 0.
    """
    from vfm_kernels.timm_layers import SUBSET

    done = Acceleration()
    for name, layer in model.named_modules():
        if type(layer) in SUBSET and getattr(layer.drop_path1, "drop_prob", 0) > 0:
            done.replace(name, layer, SUBSET[type(layer)], "residual_of_subset")
    if not done.replaced:
        raise ValueError(f"{type(model).__name__} has no block with drop path")
    return done


def model_libraries() -> list[ModuleType]:
    """Our layers for the model libraries that are installed."""
    found = []
    for library in ("timm", "open_clip"):
        if importlib.util.find_spec(library) is not None:
            found.append(importlib.import_module(f"vfm_kernels.{library}_layers"))
    return found
