"""A counter of operations and of the bytes of live tensors, also for tensors without contents."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vfm.train.cost.operations import COUNTS


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of new tensors within its context until they are freed, and each storage once.

    Attributes:
        now: Bytes of live tensors.
        peak: The largest value of `now`.
        flops: Operations of matrix products, convolutions and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count existing tensors, and return their bytes."""
        before = self.now
        for tensor in tensors:
            self._add(tensor)
        return self.now - before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # queries such as the device of a tensor
            return NotImplemented
        count = COUNTS.get(func._overloadpacket)
        if torch.is_inference_mode_enabled() and count is None:
            with self:  # inference mode does not decompose composite operations
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        result = func(*args, **kwargs)
        if count:
            self.flops += count(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
