"""The backward pass as a walk over the graph in Python.

Autograd's engine asks the driver of a CUDA device for its threads, so it cannot run on contentless tensors of a device
that is not there. The functions of the graph can be called one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

Slots = dict[int, Tensor]  # number of an output of the function -> its gradient


def backward(loss: Tensor) -> None:
    """Add the gradients of a loss to its leaves, as `loss.backward()` does."""
    for leaf, gradient in _walk([loss], [torch.ones_like(loss)], []).leaves.items():
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    **options: Any,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of outputs with respect to inputs, as `torch.autograd.grad` does."""
    tops, bottoms = _several(outputs), _several(inputs)
    firsts = _several(grad_outputs) if grad_outputs is not None else [torch.ones_like(top) for top in tops]
    walked = _walk(tops, firsts, [each for each in bottoms if each.grad_fn is not None])
    return tuple(
        walked.leaves.get(each) if each.grad_fn is None else walked.inner.get((each.grad_fn, each.output_nr))
        for each in bottoms
    )


@contextmanager
def walked_graphs() -> Iterator[None]:
    """Let `torch.autograd.backward` and `grad` walk, because a task may call them."""
    with patch.object(torch.autograd, "grad", grad), patch.object(torch.autograd, "backward", backward):
        yield


class _Gradients:
    def __init__(self) -> None:
        self.leaves: dict[Tensor, Tensor] = {}
        self.inner: dict[tuple[Any, int], Tensor] = {}


@torch.no_grad()
def _walk(outputs: list[Tensor], gradients: Sequence[Tensor], inner: list[Tensor]) -> _Gradients:
    arrived: dict[Any, Slots] = defaultdict(dict)
    for output, gradient in zip(outputs, gradients, strict=True):
        arrived[output.grad_fn][output.output_nr] = gradient
    result = _Gradients()
    for function in _from_the_outputs(outputs):
        slots = arrived.pop(function, {})
        for each in inner:
            if each.grad_fn is function and each.output_nr in slots:
                result.inner[function, each.output_nr] = slots[each.output_nr]
        if hasattr(function, "variable"):
            result.leaves[function.variable] = slots[0]
        elif slots:
            for (following, number), part in zip(function.next_functions, call(function, slots), strict=False):
                if following is not None and part is not None:
                    _add(arrived[following], number, _fitted(part, following._input_metadata[number]))
    return result


def _from_the_outputs(outputs: list[Tensor]) -> list[Any]:
    """Return the functions of a graph, each after all that use its result."""
    finished, seen = [], set()
    stack = [(output.grad_fn, False) for output in outputs]
    while stack:
        function, is_finished = stack.pop()
        if is_finished:
            finished.append(function)
        elif function not in seen:
            seen.add(function)
            stack.append((function, True))
            stack += [(following, False) for following, _ in function.next_functions if following is not None]
    return finished[::-1]


def call(function: Any, slots: Slots) -> tuple[Tensor | None, ...]:
    """Call a function of the graph with the gradients of its results, and return the gradients of its arguments."""
    arguments = [slots.get(number) for number in range(len(function._input_metadata))]
    is_ours = isinstance(function, BackwardCFunction)
    if is_ours:  # the engine gives such a function zeros for results without a gradient
        pairs = zip(arguments, function._input_metadata, strict=True)
        arguments = [torch.zeros(m.shape, dtype=m.dtype, device=m.device) if a is None else a for a, m in pairs]
    result = function.apply(*arguments) if is_ours else function(*arguments)
    return result if isinstance(result, tuple) else (result,)


def _fitted(gradient: Tensor, expected: Any) -> Tensor:
    """Sum over broadcast dimensions and convert, as the engine does between functions."""
    return gradient.sum_to_size(expected.shape).to(expected.dtype)


def _add(slots: Slots, number: int, gradient: Tensor) -> None:
    slots[number] = gradient if number not in slots else slots[number] + gradient


def _several(tensors: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)
