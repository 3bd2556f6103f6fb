"""The tensors of a training by name: weights, averages, and the optimizer's state of each weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vfm.base import UserError


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return weights and buffers by name; tied ones (one tensor under several names) by their first name only."""
    seen: set[int] = set()
    tensors = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            tensors[name] = value.detach()
    return tensors


def load_model(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load what `model_tensors` returned, into all names of tied weights; every key must match.

    Raises:
        UserError: it is the state of another model, as `continue_from` may name it; `where` is its place. The line has
            the first weight that differs.
    """
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    names = {name: first.setdefault(id(value), name) for name, value in state.items()}
    expected = {key: state[key] for key in names.values()}
    if differs := _difference({key: value.shape for key, value in expected.items()}, tensors):
        raise UserError(f"{where}: the state is of another model, or of another update of it: {differs}")
    module.load_state_dict({name: tensors[key] for name, key in names.items()}, strict=True)


def _difference(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> str:
    """Return what the first weight is that a state has in another shape, lacks, or has in excess; empty if none."""
    for name, shape in expected.items():
        if name not in found:
            return f"expected {name}, which it lacks"
        if found[name].shape != shape:
            return f"expected {name} of shape {list(shape)}, got {list(found[name].shape)}"
    return next((f"got {name}, which this model lacks" for name in found if name not in expected), "")


def as_whole(value: Tensor) -> Tensor:
    """Return a tensor, gathered from all processes if it is sharded: a collective."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def as_saved(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values that belong to parameters, by name, in the shapes of the module's state dict.

    A layer may store a weight wider than its checkpoints do (`runtime.pad_widths`), and only its own hooks can convert
    it; an average of that weight is equally wide. Values of other shapes, such as a count of steps, are unchanged.
    """
    params, state = dict(module.named_parameters()), module.state_dict()
    wider = {name: value for name, value in values.items() if value.shape == params[name].shape != state[name].shape}
    with _in_place_of_weights(module, wider):
        state = module.state_dict()
    return {**values, **{name: state[name] for name in wider}}


def as_stored(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `as_saved` returned, in the parameters' shapes."""
    params, state = dict(module.named_parameters()), module.state_dict()
    wider = {
        name: torch.zeros_like(params[name])
        for name, value in values.items()
        if value.shape == state[name].shape != params[name].shape
    }
    with _in_place_of_weights(module, wider):
        module.load_state_dict({name: values[name] for name in wider}, strict=False)
    return {**values, **wider}


@contextmanager
def _in_place_of_weights(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    params = {name: param for name, param in module.named_parameters() if name in values}
    weights = {name: param.data for name, param in params.items()}
    try:
        for name, param in params.items():
            param.data = values[name]
        yield
    finally:
        for name, param in params.items():
            param.data = weights[name]


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter/key`, by the parameters' names."""
    by_key: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, param in module.named_parameters():
        for key, value in optimizer.state.get(param, {}).items():
            if isinstance(value, Tensor):
                by_key[key][name] = value
    return {f"{name}/{key}": value for key in by_key for name, value in as_saved(module, by_key[key]).items()}


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned; rates and decays stay those of the configuration."""
    names = {id(param): name for name, param in module.named_parameters()}
    order = [names[id(param)] for group in optimizer.param_groups for param in group["params"]]
    by_key: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        by_key[key][name] = value
    state: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, values in by_key.items():
        for name, value in as_stored(module, values).items():
            state[name][key] = value
    by_index = {index: state[name] for index, name in enumerate(order) if name in state}
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})
