"""Replacement of timm's and open_clip's layers by subclasses that run our ops, and its reversal."""

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
from vfm_kernels.dispatch.measured import gains
from vfm_kernels.layers.next_norm import NextNorm


@dataclass
class Acceleration:
    """Record of the layers of a model that were replaced. `undo`, or the end of a `with` block, restores them.

    Attributes:
        replaced: Maps the name of a layer to the op that it runs, or to how its weights are stored.
        skipped: Maps the name of a layer of a known class to the reason why it was not replaced.
        gains: Maps an op to the milliseconds a call that it saved where it was measured to win.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    gains: dict[str, set[float]] = field(default_factory=dict)
    _undo: ExitStack = field(default_factory=ExitStack, repr=False)

    def replace(self, model: nn.Module, name: str, new_class: type[nn.Module], description: str) -> nn.Module:
        """Replace a layer of a model by a module of another class with the same state.

        Returns:
            The module that is now in the model.

        Raises:
            ValueError: If `name` is empty, so the layer has no parent.
        """
        if not name:
            raise ValueError(f"expected a model that contains the layer, got the {type(model).__name__} itself")
        parent_name, _, child_name = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layer = model.get_submodule(name)
        replacement = with_state_of(layer, new_class)
        setattr(parent, child_name, replacement)
        self.on_undo(setattr, parent, child_name, layer)
        self.replaced[name] = description
        return replacement

    def on_undo(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Register a call that reverses a change. The last change is reversed first."""
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
        parts = [f"{op} in {count} layer{'s' * (count > 1)}{self._gain(op)}" for op, count in counts]
        return ", ".join(parts) or "the libraries' own forward"

    def _gain(self, op: str) -> str:
        saved = self.gains.get(op)
        if not saved:
            return ""
        return f" (measured to save {min(saved):.3g} to {max(saved):.3g} ms a call)"


def with_state_of(layer: nn.Module, new_class: type[nn.Module]) -> nn.Module:
    """Create a module of another class that shares the state of a layer.

    Parameters, children, hooks and mode are in one dictionary that both modules use, so they always change together.
    Everything registered on the layer stays registered, and the layer returns to the model up to date.

    Args:
        layer: Module whose state is shared.
        new_class: Class of the new module.
    """
    module = new_class.__new__(new_class)
    # One dictionary for both, so whatever is set on one of them (a weight, a hook, the mode) is seen by the other.
    module.__dict__ = layer.__dict__
    return module


def accelerate(model: nn.Module) -> Acceleration:
    """Replace the layers of a model by layers that use fused kernels.

    Attention, SwiGLU and residual sums then run in one kernel each, where kernels run. Each layer is replaced in its
    parent by a module of a subclass that shares its state and has another forward. Parameters, hooks and names stay the
    same, so optimisers, checkpoints, DDP and copies are unaffected. Only hooks on a block's second norm no longer run.

    `use_kernels` and the model's device decide which layers are replaced. `auto` replaces layers whose kernel was
    measured to be faster on this GPU's architecture, and none on a CPU.

    Args:
        model: Model on its device, with layers of timm (`Eva`, `VisionTransformer`) or open_clip.

    Returns:
        The replaced layers, and the reasons why others were skipped. As a context manager it reverses itself.

    Raises:
        ValueError: If kernels are forced and cannot run here, or no layer can take one.
    """
    acceleration = Acceleration()
    parameter = next(model.parameters())
    if not kernels_wanted(parameter):
        return acceleration
    for library in model_libraries():
        known = dict(library.FUSED.values())
        for name, layer in list(model.named_modules()):
            if type(layer) in known:  # widened by `pad_swiglu`, or replaced before
                acceleration.replaced[name] = known[type(layer)]
            # The exact type: a subclass may override `forward`, which the replacement would ignore.
            if type(layer) not in library.FUSED:
                continue
            new_class, op = library.FUSED[type(layer)]
            reason = library.reason_against(layer, model)
            if reason is None and SETTINGS.choice == "auto":
                width = library.width_of(layer)
                reason = _reason_against_speed(op, width, parameter.device)
                acceleration.gains.setdefault(op, set()).update(gains(op, parameter.device, width))
            if reason is None:
                acceleration.replace(model, name, new_class, op)
            else:
                acceleration.skipped[name] = reason
        _join_blocks(library, model, acceleration)
    if SETTINGS.choice == "triton" and not acceleration.replaced:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in acceleration.skipped.items())
        raise ValueError(f"{type(model).__name__} has no layer that takes a kernel ({reasons or 'none is known'})")
    return acceleration


def _join_blocks(library: ModuleType, model: nn.Module, acceleration: Acceleration) -> None:
    """Fuse the last residual sum of each block of a sequence with the first norm of the next block."""
    for blocks in model.modules():
        if not isinstance(blocks, nn.ModuleList | nn.Sequential):
            continue
        for block, after in itertools.pairwise(blocks):
            norm = library.following_norm(after)
            if norm is not None and library.following_norm(block) is not None:
                # Not by `setattr`, so that no state dict or optimizer meets the norm twice.
                block.__dict__["following"] = NextNorm(norm)
                acceleration.on_undo(block.__dict__.pop, "following", None)


def _reason_against_speed(op: str, width: int, device: torch.device) -> str | None:
    """Explain why `auto` keeps the library's forward for a layer of this width.

    Returns:
        The reason, or None if the kernel was measured to win.
    """
    if gains(op, device, width):
        return None
    return f"no measurement on this card says that {op} of width {width} is faster"


@contextmanager
def accelerated(choice: Kernels, *models: nn.Module) -> Iterator[str]:
    """Use kernels in models within a block.

    It combines `use_kernels` and `accelerate`. With `auto`, layers without a kernel that is measured to be faster keep
    their forward.

    Args:
        choice: Choice of `use_kernels`.
        *models: Models on their devices.

    Yields:
        A description of the ops in use.

    Raises:
        ValueError: If `choice` is `triton` and it cannot run, or no layer can take a kernel.
    """
    with use_kernels(choice), accelerate(nn.ModuleList(models)) as acceleration:
        yield str(acceleration)


def subset_drop_path(model: nn.Module) -> Acceleration:
    """Make timm's blocks drop paths by running each branch on part of the batch.

    This saves the dropped fraction of the branches' time in the forward and the backward, on any device. It is an
    option for two reasons. Its distribution differs from drop path's (see `residual_of_subset`). Such a block also
    keeps the rest of its forward, so `accelerate` does not fuse its residual sums.

    Args:
        model: Model with timm's blocks.

    Returns:
        The replaced blocks. As a context manager it reverses itself.

    Raises:
        ValueError: If the model has no timm block with a drop path rate above 0.
    """
    # timm is optional
    from vfm_kernels.layers.timm_layers import SUBSET

    acceleration = Acceleration()
    for name, layer in list(model.named_modules()):
        if type(layer) in SUBSET and getattr(layer.drop_path1, "drop_prob", 0) > 0:
            acceleration.replace(model, name, SUBSET[type(layer)], "residual_of_subset")
    if not acceleration.replaced:
        raise ValueError(f"{type(model).__name__} has no block with drop path")
    return acceleration


def model_libraries() -> list[ModuleType]:
    """Import our layers for each model library that is installed."""
    libraries = []
    for library in ("timm", "open_clip"):
        if importlib.util.find_spec(library) is not None:
            libraries.append(importlib.import_module(f"vfm_kernels.layers.{library}_layers"))
    return libraries
