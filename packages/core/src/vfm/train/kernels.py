"""What makes a training faster, for its time: `runtime.kernels` and `runtime.pad_widths`, checked early and told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from vfm.config import UserError
from vfm.stage import Context, Runtime
from vfm.train.dist import World
from vfm.train.task import Task


def check_kernels(runtime: Runtime) -> None:
    """Refuses kernels that are forced where they cannot run. What a named CUDA device has shows when it is there.

    Raises:
        UserError: `triton` on another device.
    """
    device = runtime.device.partition(":")[0]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if runtime.kernels == "triton" and device != "cuda":
        raise UserError(f"runtime.kernels: triton needs a CUDA device, this runs on {device}; use auto or reference")


@contextmanager
def chosen_kernels(task: Task, runtime: Runtime, ctx: Context, world: World) -> Iterator[None]:
    """The task, on its device, with the kernels and the widths that the runtime asks for.

    What runs is told and kept in the manifest.

    Raises:
        UserError: `triton`, and they cannot run.
    """
    with ExitStack() as stack:
        wider = f"; stored wider: {stack.enter_context(task.padded())}" if runtime.pad_widths else ""
        try:
            running = stack.enter_context(task.kernels(runtime.kernels)) + wider
        except ValueError as error:
            raise UserError(f"{ctx.stage}: runtime.kernels: {error}") from None
        if world.is_main:
            ctx.emit("kernels", running=running)
            if world.device.type == "cuda" or runtime.pad_widths:
                ctx.log(f"kernels: {running}")
        yield
