"""A counter of the bytes of live tensors and of operations, for real tensors and for those without contents."""

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
    """Counts, within its context, what new tensors take and when it is free again, every storage once.

    Attributes:
        now: bytes of the tensors that live.
        peak: the largest value of `now`.
        flops: operations of matrix products, convolutions and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that were made before; return their bytes."""
        before = self.now
        for tensor in tensors:
            self._add(tensor)
        return self.now - before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions such as a tensor's device
            return NotImplemented
        count = COUNTS.get(func._overloadpacket)
        if torch.is_inference_mode_enabled() and count is None:
            with self:  # composite operations arrive whole there
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        made = func(*args, **kwargs)
        if count:
            self.flops += count(*args, **kwargs, out_val=made)
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return made

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
