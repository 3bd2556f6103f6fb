"""Counts of operations of matrix products, convolutions and attention: torch's table, with attention on the CPU."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, MutableMapping
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


class Operations(TorchDispatchMode):
    """Counts operations without changing them. torch's counter decomposes some of them, which changes results."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = COUNTS.get(func._overloadpacket)
        if count:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result
