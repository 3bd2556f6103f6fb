"""Collect and load weights, averages and the optimizer's state by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vfm.base import UserError


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Collect weights and buffers by name.

    A tied tensor has several names. It is listed under the first one.
    """
    seen: set[int] = set()
    tensors = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            tensors[name] = value.detach()
    return tensors


def load_model(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load tensors from `model_tensors`, into all names of tied weights. Every key must match.

    Args:
        module: Module to load into.
        tensors: Result of `model_tensors`.
        where: Place of the state, for the message.

    Raises:
        UserError: If the state belongs to another model, as `continue_from` may name one. The message has the first
            weight that differs.
    """
    first_names: dict[int, str] = {}
    keys: dict[str, str] = {}
    shapes: dict[str, torch.Size] = {}
    # Tied weights have several names, and are stored under the first. `keep_vars` keeps their identity.
    for name, value in module.state_dict(keep_vars=True).items():
        keys[name] = first_names.setdefault(id(value), name)
        shapes.setdefault(keys[name], value.shape)
    difference = _difference(shapes, tensors)
    if difference:
        raise UserError(f"{where}: the state is of another model, or of another update of it: {difference}")
    module.load_state_dict({name: tensors[key] for name, key in keys.items()}, strict=True)


def _difference(expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> str:
    """Describe the first weight that is missing, unexpected, or of another shape, empty if there is none."""
    for name, shape in expected.items():
        if name not in tensors:
            return f"expected {name}, which it lacks"
        if tensors[name].shape != shape:
            return f"expected {name} of shape {list(shape)}, got {list(tensors[name].shape)}"
    for name in tensors:
        if name not in expected:
            return f"got {name}, which this model lacks"
    return ""


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """List the weights that an optimizer updates, in the order of its groups."""
    return list(chain.from_iterable(group["params"] for group in optimizer.param_groups))


def as_whole(value: Tensor) -> Tensor:
    """Gather a tensor from all processes if it is sharded. This is a collective operation."""
    if not isinstance(value, DTensor):
        return value
    return value.full_tensor()


def as_saved(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert values that belong to parameters, by name, to the shapes in the module's state dict.

    A layer may store a weight wider than in checkpoints (`runtime.pad_widths`), and only its hooks can convert it. An
    average of the weight is equally wide. Values of other shapes, such as a count of steps, are unchanged.
    """
    params = dict(module.named_parameters())
    state = module.state_dict()
    wider = {name: value for name, value in values.items() if value.shape == params[name].shape != state[name].shape}
    saved = dict(values)
    with _in_place_of_weights(module, wider):
        state = module.state_dict()
    for name in wider:
        saved[name] = state[name]
    return saved


def as_stored(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert values from `as_saved` back to the shapes of the parameters."""
    params = dict(module.named_parameters())
    state = module.state_dict()
    wider = {}
    for name, value in values.items():
        if value.shape == state[name].shape != params[name].shape:
            wider[name] = torch.zeros_like(params[name])
    with _in_place_of_weights(module, wider):
        module.load_state_dict({name: values[name] for name in wider}, strict=False)
    return {**values, **wider}


@contextmanager
def _in_place_of_weights(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    params = dict(module.named_parameters())
    weights = {name: params[name].data for name in values}
    try:
        for name, value in values.items():
            params[name].data = value
        yield
    finally:
        for name, weight in weights.items():
            params[name].data = weight


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Collect the optimizer's state as `parameter/key`, by the parameters' names."""
    by_key: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, param in module.named_parameters():
        for key, value in optimizer.state.get(param, {}).items():
            if isinstance(value, Tensor):
                by_key[key][name] = value
    tensors = {}
    for key, values in by_key.items():
        for name, value in as_saved(module, values).items():
            tensors[f"{name}/{key}"] = value
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load tensors from `optimizer_tensors`. Learning rates and weight decays keep their configured values.

    Args:
        optimizer: Optimizer to load into.
        module: Module with its parameters.
        tensors: Result of `optimizer_tensors`.
    """
    names = {id(param): name for name, param in module.named_parameters()}
    by_key: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        by_key[key][name] = value
    state: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, values in by_key.items():
        for name, value in as_stored(module, values).items():
            state[name][key] = value
    by_index = {}
    for index, param in enumerate(parameters_of(optimizer)):
        name = names[id(param)]
        if name in state:
            by_index[index] = state[name]
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})
