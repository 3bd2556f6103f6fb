"""Build the weights of a sharded model in rank 0 before a training, and export them after it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vfm.interfaces import Context, LeftToFirst, TrainingRuntime
from vfm.models.stored_weights import weights_stay_in_files
from vfm.train.parallel.deadline import deadline
from vfm.train.parallel.dist import is_main
from vfm.train.parallel.progress import Phase


@contextmanager
def weights_from_first(runtime: TrainingRuntime) -> Iterator[None]:
    """Make a model that is built within the context have weights only in rank 0, if `fit` will shard it.

    In the other processes its weights are on the meta device, where they take no memory. They cannot be read, and
    values that are written or loaded into them are dropped. `fit` then gives each process its part. The weights are
    the same as in a single process. Weights from a safetensors file with the same names stay in the file, from which
    each process then reads its part.
    """
    if runtime.parallel != "fsdp" or is_main():
        in_file = runtime.parallel == "fsdp" and os.environ.get("WORLD_SIZE", "1") != "1"
        with weights_stay_in_files() if in_file else nullcontext():
            yield
        return
    hook = register_module_parameter_registration_hook(_on_meta)  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="(?s).*to a meta parameter in the current model, which is a no-op"
            )
            with weights_stay_in_files():
                yield
    finally:
        hook.remove()


@contextmanager
def exporting(runtime: TrainingRuntime, ctx: Context) -> Iterator[None]:
    """Run the code that exports the trained model, in rank 0 only. Other ranks may have no weights.

    If there are several processes and the export takes longer than ten times `hang_seconds`, the limit for a
    checkpoint, this process writes its stacks and ends with a message.

    Raises:
        LeftToFirst: In all other processes.
    """
    if not is_main():
        raise LeftToFirst
    seconds = runtime.hang_seconds * Phase.SAVING.limit
    watch: AbstractContextManager[None] = nullcontext()
    if os.environ.get("WORLD_SIZE", "1") != "1":

        def report(message: str) -> None:
            ctx.emit("run_failed", message=message)

        watch = deadline(seconds, f"{ctx.stage}: the export", report, ctx.work / "stacks-0.txt")
    with watch:
        yield


def _on_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter | None:
    if param is None or param.is_meta:  # a tied weight that another module has registered
        return None
    return nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
