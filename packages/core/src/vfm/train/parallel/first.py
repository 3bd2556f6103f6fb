"""What only rank 0 does before and after a training: it builds the weights of a sharded model, and exports them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vfm.interfaces import LeftToFirst, TrainingRuntime
from vfm.train.parallel.dist import is_main


@contextmanager
def weights_from_first(runtime: TrainingRuntime) -> Iterator[None]:
    """Build a model within the context that has weights in rank 0 only, if `fit` shards it.

    In the other processes its weights are on the meta device, where they take no memory. They cannot be read, and what
    is written or loaded into them is dropped. `fit` then gives each process its part. The weights are those that a
    single process would draw or load.
    """
    if runtime.parallel != "fsdp" or is_main():
        yield
        return
    hook = register_module_parameter_registration_hook(_on_meta)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="(?s).*to a meta parameter in the current model, which is a no-op"
            )
            yield
    finally:
        hook.remove()


def leave_export_to_first() -> None:
    """Continue in rank 0 only, after `fit`, since only its task is sure to have the trained weights.

    Raises:
        LeftToFirst: in all other processes.
    """
    if not is_main():
        raise LeftToFirst


def _on_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter | None:
    if param is None or param.is_meta:  # a tied weight that another module has registered
        return None
    return nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
