"""Tensors without contents, with which a training step has the real shapes, types and devices, but allocates no memory.

The host reads zeros from them. If a size depends on values (boxes after suppression, indices where a condition
holds), it is the largest possible size. If a mask is used as an index, it selects a given share.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@contextmanager
def contentless(selected: float = 1.0) -> Iterator[None]:
    """Create all new tensors without contents within the context, even on devices that the machine does not have.

    Args:
        selected: Share of the elements that a mask selects if it is used as an index.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # as deepcopy does
        with FakeTensorMode(allow_non_fake_inputs=True), _LargestSizes(selected), _ReadAsZero():
            yield


class _LargestSizes(TorchDispatchMode):
    """Computes operations whose results depend on values."""

    def __init__(self, selected: float) -> None:
        super().__init__()
        self.selected = selected

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            if args[0].dtype == torch.bool:
                return False
            if args[0].is_floating_point():
                return 0.0
            return 0
        if func is aten.nonzero.default:
            return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        if func is aten._unique2.default:  # one value, so that grouping by it gives one group
            inverse = args[0].new_empty(args[0].shape, dtype=torch.int64)
            return args[0].new_empty(1), inverse, args[0].new_empty(1, dtype=torch.int64)
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default):
            args = (args[0], self._by_numbers(args[1]), *args[2:])
        if func.namespace == "torchvision" and func._opname == "nms":
            return args[0].new_empty(len(args[0]), dtype=torch.int64)
        return func(*args, **(kwargs or {}))

    def _by_numbers(self, index: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Replace masks in an index by the numbers of the elements that they select."""
        numbers: list[Tensor | None] = []
        for part in index:
            if part is None or part.dtype not in (torch.bool, torch.uint8):
                numbers.append(part)
            else:
                count = math.ceil(self.selected * part.numel())
                numbers += [part.new_empty(count, dtype=torch.int64) for _ in range(part.ndim)]
        return numbers


class _ReadAsZero(TorchFunctionMode):
    """Returns zeros when the host reads the values of a whole tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("numpy", "tolist", "__array__") and isinstance(args[0], FakeTensor):
            dtype = torch.empty(0, dtype=args[0].dtype, device="meta").dtype
            zeros = np.zeros(tuple(args[0].shape), dtype=str(dtype).removeprefix("torch."))
            if name == "tolist":
                return zeros.tolist()
            return zeros
        return func(*args, **(kwargs or {}))
