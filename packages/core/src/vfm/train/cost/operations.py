"""Count the operations of matrix products, convolutions and attention by torch's table, also on the CPU."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    shapes = (grad.shape, query.shape, key.shape, value.shape)
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


COUNTS: MutableMapping[Any, Callable[..., int]] = ChainMap(
    {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    },
    flop_registry,
)
"""Functions from the arguments of an operation and its result (`out_val`) to the count, 2 per multiply-add."""


_repeats: ContextVar[bool] = ContextVar("repeats", default=False)


@contextmanager
def repeated_forward() -> Iterator[None]:
    """Mark a forward pass that was run before, as by losses that replay their micro-batches, within the context."""
    token = _repeats.set(True)
    try:
        yield
    finally:
        _repeats.reset(token)


class Operations(TorchDispatchMode):
    """Counts operations without changing them.

    torch's counter decomposes some of them, and so changes results.

    Attributes:
        flops: All operations.
        repeated: The operations that are run a second time, to save memory: in `repeated_forward`, and by activation
            checkpointing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.repeated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = COUNTS.get(func._overloadpacket)
        if count:
            flops = count(*args, **(kwargs or {}), out_val=result)
            self.flops += flops
            # Checkpointing runs forward passes again within the backward pass, which itself records no gradients.
            recomputes = torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()
            if recomputes or _repeats.get():
                self.repeated += flops
        return result
