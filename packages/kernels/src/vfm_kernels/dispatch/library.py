"""Register ops that `torch.compile` does not trace, with gradients and with shapes on meta tensors.

It uses `torch.library.Library` rather than `custom_op`, whose calls cost the CPU twice as much: a ViT makes about 240
of them per step. Even so, torch's dispatcher costs 20 microseconds a call in Python and as many in the backward.
Therefore an eager call on plain tensors, which does not need the dispatcher, bypasses it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

NAMESPACE = "vfm_kernels"
_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


class Op:
    """An op, `torch.ops.vfm_kernels.NAME`, called by the shortest way.

    Args:
        schema: Name, arguments and results, such as `twice(Tensor x) -> Tensor`. The first argument must be a tensor.
        run: The op on tensors of any device, without autograd.
        fake: Computes results of the right shapes, strides and dtypes, without values.
    """

    def __init__(self, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.name = schema.split("(", 1)[0]
        self._eager = run
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(self.name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{self.name}", fake, lib=_library)
        self.registered = getattr(torch.ops.vfm_kernels, self.name).default

    def differentiate(self, backward: Callable[..., Any], keep: Callable[..., None]) -> None:
        """Register the gradient.

        Args:
            backward: Maps the context and the results' gradients to the arguments' gradients. It must call ops or
                differentiable torch, because `torch.compile` traces it.
            keep: Saves the arguments and results that `backward` needs in the context.
        """
        torch.library.register_autograd(f"{NAMESPACE}::{self.name}", backward, setup_context=keep, lib=_library)
        run = self._eager

        def forward(ctx: Any, *arguments: Any) -> Any:
            results = run(*arguments)
            keep(ctx, arguments, results)
            return results

        # A function of autograd whose forward is called directly, without the dispatcher, which costs as much as a
        # small kernel on the host.
        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._eager = type(self.name, (torch.autograd.Function,), members).apply  # type: ignore[attr-defined]

    def __call__(self, *arguments: Any) -> Any:
        """Run the op."""
        run = self._eager if _needs_no_dispatcher(arguments[0]) else self.registered
        return run(*arguments)


def _needs_no_dispatcher(tensor: Tensor) -> bool:
    """Check that no compiler, mode (fake tensors), tensor subclass or `torch.func` transform must see the call."""
    return not (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
    )
