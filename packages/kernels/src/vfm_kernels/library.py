"""Registration of ops: opaque to `torch.compile`, known to autograd, with shapes on meta tensors.

It uses `torch.library.Library` rather than `custom_op`, whose calls cost the CPU twice as much: a ViT makes about 240
of them per step.
"""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "vfm_kernels"
_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> str:
    """Define `torch.ops.vfm_kernels.NAME` from a schema such as `twice(Tensor x) -> Tensor`.

    Args:
        schema: name, arguments and results.
        run: the op on tensors of any device, without autograd.
        fake: results of the right shapes, strides and dtypes, without values.

    Returns:
        The op's full name, for `differentiate`.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return f"{NAMESPACE}::{name}"


def differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Register the op's gradient, which must call ops or differentiable torch because `torch.compile` traces it."""
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_library)
