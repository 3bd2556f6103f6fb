"""The residual sum at the end of a transformer block with the first norm of the next block, in one pass.

A block's second sum feeds another block's norm, and models call blocks one by one. So a block hands the norm over on
its result, and the next block takes it if it gets that very result.
"""

# B batch, N tokens, D width

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HANDED = "_vfm_handed"  # attribute of a block's result


class NextNorm:
    """The norm that follows a block; it is neither copied nor saved with the block.

    Attributes:
        wanted: whether the last norm that was handed over was taken. Windows, for one, reorder tokens between blocks.
    """

    def __init__(self, norm: nn.Module | None = None) -> None:
        self._norm = None if norm is None else weakref.ref(norm)
        self.wanted = True

    def __reduce__(self) -> tuple[type["NextNorm"], tuple[()]]:
        return NextNorm, ()

    def get(self) -> Any:
        """Return the norm where one pass may compute it, else None.

        Not under hooks of saved tensors: with activation checkpointing the next block would not find the norm when it
        is computed again. Nor where the norm's parameters are not plain tensors (FSDP gathers them when the next block
        begins), where the norm has hooks and must be called, where tensors do not know whether they were changed, or
        where the last one was not taken.
        """
        norm: Any = None if self._norm is None else self._norm()
        if norm is None or not self.wanted or type(norm.weight) is not nn.Parameter:
            return None
        if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks:
            return None
        if torch.is_inference_mode_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            return None
        return norm


class _Handed(NamedTuple):
    following: NextNorm
    norm: nn.Module
    normed: Tensor
    version: int  # of the sum when it was normed


def sum_for_next(
    following: NextNorm | None,
    plain: Callable[[], Tensor],
    sum_and_norm: Callable[[nn.Module], tuple[Tensor, Tensor]],
) -> Tensor:
    """Return a block's residual sum, and hand the next block's norm of it over where it is known.

    Args:
        following: the next block's norm; None for the last block.
        plain: computes the sum alone.
        sum_and_norm: computes the sum and its norm.
    """
    # The compiler comes first, because it cannot trace a weak reference.
    norm = None if following is None or torch.compiler.is_compiling() else following.get()
    if following is None or norm is None:
        return plain()
    summed, normed = sum_and_norm(norm)
    following.wanted = False
    setattr(summed, HANDED, _Handed(following, norm, normed, summed._version))
    return summed


def first_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Return a block's first norm of its input: what the block before handed over, or computed here."""
    handed: _Handed | None = None if torch.compiler.is_compiling() else x.__dict__.pop(HANDED, None)
    if handed is not None and handed.norm is norm and handed.version == x._version:
        handed.following.wanted = True
        return handed.normed
    result: Tensor = norm(x)
    return result
