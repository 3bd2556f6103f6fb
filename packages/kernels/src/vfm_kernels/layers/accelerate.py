"""Replacement of layers of timm and open_clip by subclasses that run our ops, and its reversal."""

import importlib.util
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Self

import torch
from torch import nn

from vfm_kernels.dispatch.dispatch import SETTINGS, Kernels, kernels_wanted, use_kernels
from vfm_kernels.dispatch.measured import is_measured_faster
from vfm_kernels.layers.next_norm import NextNorm


@dataclass
class Acceleration:
    """Layers of a model that were replaced, and what reverses it: `undo`, or the end of a `with` block.

    Attributes:
        replaced: name of a layer -> the op that it runs, or how its weights are stored.
        kept: name of a layer of a known class -> why it was not replaced.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    _undo: ExitStack = field(default_factory=ExitStack, repr=False)

    def replace(self, model: nn.Module, name: str, new_class: type[nn.Module], description: str) -> nn.Module:
        """Replace a layer of a model by a module of another class with the same state, and return that module."""
        if not name:
            raise ValueError(f"expected a model that contains the layer, got the {type(model).__name__} itself")
        parent_name, _, child_name = name.rpartition(".")
        parent, layer = model.get_submodule(parent_name), model.get_submodule(name)
        replacement = with_state_of(layer, new_class)
        setattr(parent, child_name, replacement)
        self.on_undo(setattr, parent, child_name, layer)
        self.replaced[name] = description
        return replacement

    def on_undo(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Register a call that reverses a change; the last change is reversed first."""
        self._undo.callback(call, *arguments)

    def undo(self) -> None:
        """Restore every layer."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        counts = sorted(Counter(self.replaced.values()).items())
        parts = ", ".join(f"{op} in {count} layer{'s' * (count > 1)}" for op, count in counts)
        return parts or "the libraries' own forward"


def with_state_of(layer: nn.Module, new_class: type[nn.Module]) -> nn.Module:
    """Return a module of `new_class` that shares all state with `layer`: parameters, children, hooks and mode.

    Sharing the dictionary itself, rather than a copy, keeps both the same when either changes: what was registered on
    the layer stays registered, and the layer returns to the model up to date.
    """
    module = new_class.__new__(new_class)
    module.__dict__ = layer.__dict__
    return module


def accelerate(model: nn.Module) -> Acceleration:
    """Make attention, SwiGLU and residual sums of a model's layers run in one kernel each, where kernels run.

    Each layer is replaced in its parent by a module of a subclass that shares its state and has another forward.
    Parameters, hooks and names, and so optimisers, checkpoints, DDP and copies, are unaffected; only hooks on a block's
    second norm no longer run. What is replaced follows `use_kernels` and the model's device: `auto` replaces layers
    whose kernel was measured to be faster on this GPU's architecture, and on a CPU nothing.

    Args:
        model: holds layers of timm (`Eva`, `VisionTransformer`) or open_clip, on its device.

    Returns:
        What was replaced, and what was not and why; as a context manager it reverses itself.

    Raises:
        ValueError: kernels are forced and cannot run here, or no layer can take one.
    """
    done = Acceleration()
    parameter = next(model.parameters())
    if not kernels_wanted(parameter):
        return done
    for library in model_libraries():
        known = dict(library.FUSED.values())
        for name, layer in list(model.named_modules()):
            if type(layer) in known:  # widened by `pad_swiglu`, or replaced before
                done.replaced[name] = known[type(layer)]
            if type(layer) not in library.FUSED:
                continue
            new_class, op = library.FUSED[type(layer)]
            reason = library.reason_against(layer, model)
            if reason is None and SETTINGS.choice == "auto":
                reason = _reason_against_speed(op, library.width_of(layer), parameter.device)
            if reason is None:
                done.replace(model, name, new_class, op)
            else:
                done.kept[name] = reason
        _join_blocks(library, model, done)
    if SETTINGS.choice == "triton" and not done.replaced:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in done.kept.items())
        raise ValueError(f"{type(model).__name__} has no layer that takes a kernel ({reasons or 'none is known'})")
    return done


def _join_blocks(library: ModuleType, model: nn.Module, done: Acceleration) -> None:
    """Let each block of a sequence compute the first norm of the next one with its own last sum."""
    for blocks in (module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)):
        for block, after in itertools.pairwise(blocks):
            norm = library.following_norm(after)
            if norm is not None and library.following_norm(block) is not None:
                block.__dict__["following"] = NextNorm(norm)
                done.on_undo(block.__dict__.pop, "following", None)


def _reason_against_speed(op: str, width: int, device: torch.device) -> str | None:
    """Return why `auto` does not take a kernel for a layer of some width; None if the kernel was measured to win."""
    if is_measured_faster(op, device, width, compiled=False):
        return None
    return f"no measurement on this architecture says that {op} of width {width} is faster"


@contextmanager
def accelerated(choice: Kernels, *models: nn.Module) -> Iterator[str]:
    """Apply `use_kernels` and `accelerate` for the duration of a training; yield a description of what runs.

    With `auto`, layers without a kernel that is measured to be faster keep their forward.

    Raises:
        ValueError: `choice` is `triton` and it cannot run, or no layer can take a kernel.
    """
    with use_kernels(choice), accelerate(nn.ModuleList(models)) as done:
        yield str(done)


def subset_drop_path(model: nn.Module) -> Acceleration:
    """Make timm's blocks drop paths by running each branch on part of the batch, on any device.

    It saves the dropped fraction of the branches' time, forward and backward. It is an option because its distribution
    differs from that of drop path (see `residual_of_subset`), and because such a block keeps the rest of its forward:
    `accelerate` does not fuse its residual sums.

    Raises:
        ValueError: the model has no block of timm's with a drop path rate above 0.
    """
    # timm is optional
    from vfm_kernels.layers.timm_layers import SUBSET

    done = Acceleration()
    for name, layer in list(model.named_modules()):
        if type(layer) in SUBSET and getattr(layer.drop_path1, "drop_prob", 0) > 0:
            done.replace(model, name, SUBSET[type(layer)], "residual_of_subset")
    if not done.replaced:
        raise ValueError(f"{type(model).__name__} has no block with drop path")
    return done


def model_libraries() -> list[ModuleType]:
    """Return our layers for the model libraries that are installed."""
    libraries = []
    for library in ("timm", "open_clip"):
        if importlib.util.find_spec(library) is not None:
            libraries.append(importlib.import_module(f"vfm_kernels.layers.{library}_layers"))
    return libraries
