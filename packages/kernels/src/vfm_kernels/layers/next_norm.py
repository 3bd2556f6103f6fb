"""The residual sum at the end of a transformer block and the first norm of the next block, in one pass.

A block's second sum is the input of the next block's norm, but models call blocks one by one. So a block attaches the
norm to its result, and the next block uses it if its input is that very tensor.
"""

# B batch, N tokens, D width

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HANDED = "_vfm_handed"  # attribute of a block's result that holds the norm


class NextNorm:
    """The norm that follows a block. It is neither copied nor saved with the block.

    Attributes:
        wanted: Whether the last norm was used. Windows, for example, reorder tokens between blocks.
    """

    def __init__(self, norm: nn.Module | None = None) -> None:
        self._norm = None if norm is None else weakref.ref(norm)
        self.wanted = True

    def __reduce__(self) -> tuple[type["NextNorm"], tuple[()]]:
        return NextNorm, ()

    def get(self) -> Any:
        """Return the norm where one pass may compute it, else None.

        It is None in these cases:

        - Hooks of saved tensors are active: with activation checkpointing, the next block would not find the norm when
          it is computed again.
        - The norm's parameters are not plain tensors: FSDP gathers them when the next block begins.
        - The norm has hooks, so it must be called.
        - Inference mode is on, where tensors do not record changes.
        - The next block did not use the last norm.
        """
        norm: Any = None if self._norm is None else self._norm()
        if norm is None or not self.wanted or type(norm.weight) is not nn.Parameter:
            return None
        # A hook, a saved-tensor hook (activation checkpointing) or inference mode must see the norm's own call.
        if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks:
            return None
        if torch.is_inference_mode_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            return None
        return norm


class _Handed(NamedTuple):
    following: NextNorm
    norm: nn.Module
    normed: Tensor
    version: int  # version counter of the sum when it was normed


def sum_for_next(
    following: NextNorm | None,
    plain: Callable[[], Tensor],
    sum_and_norm: Callable[[nn.Module], tuple[Tensor, Tensor]],
) -> Tensor:
    """Compute a block's residual sum, and attach the next block's norm of it if that norm is known.

    Args:
        following: Norm of the next block. The last block has none.
        plain: Computes the sum alone.
        sum_and_norm: Computes the sum and its norm.
    """
    # The compiler comes first, because it cannot trace a weak reference.
    norm = None
    if following is not None and not torch.compiler.is_compiling():
        norm = following.get()
    if following is None or norm is None:
        return plain()
    summed, normed = sum_and_norm(norm)
    following.wanted = False
    setattr(summed, HANDED, _Handed(following, norm, normed, summed._version))
    return summed


def first_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Compute a block's first norm of its input, unless the block before has already attached it."""
    handed: _Handed | None = None
    if not torch.compiler.is_compiling():
        handed = x.__dict__.pop(HANDED, None)
    # Changed in place, the sum has another version, and its norm is computed again.
    if handed is not None and handed.norm is norm and handed.version == x._version:
        handed.following.wanted = True
        return handed.normed
    result: Tensor = norm(x)
    return result
