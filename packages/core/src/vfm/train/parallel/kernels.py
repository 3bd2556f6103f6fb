"""Use fused kernels and padded widths in training (`runtime.kernels`, `runtime.pad_widths`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from vfm.base import UserError
from vfm.interfaces import Context, TrainingRuntime
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.task import Task


def check_kernels(runtime: TrainingRuntime) -> None:
    """Check that forced kernels can run on this device. The capability of a CUDA device is checked when it is used.

    Raises:
        UserError: If `triton` is set, but the device is not CUDA.
    """
    device = runtime.device.split(":", 1)[0]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if runtime.kernels == "triton" and device != "cuda":
        raise UserError(f"runtime.kernels: triton needs a CUDA device, got {device}; use auto or reference")


@contextmanager
def chosen_kernels(task: Task[Any], runtime: TrainingRuntime, ctx: Context, world: DistributedWorld) -> Iterator[None]:
    """Use the runtime's kernels and padded widths in a task within the context.

    The names of the running kernels are reported, and stored in the manifest.

    Args:
        task: Task on its device.
        runtime: Choice of kernels.
        ctx: Context of the stage.
        world: This process.

    Raises:
        UserError: If `triton` is set, but the kernels cannot run.
    """
    pad = runtime.pad_widths
    if pad == "auto":
        pad = world.device.type == "cuda" and runtime.parallel == "ddp"
    with ExitStack() as stack:
        wider = f"; padded: {stack.enter_context(task.padded())}" if pad else ""
        try:
            running = stack.enter_context(task.kernels(runtime.kernels)) + wider
        except ValueError as error:
            raise UserError(f"{ctx.stage}: runtime.kernels: {error}") from None
        if world.is_main:
            ctx.emit("kernels", running=running)
            if world.device.type == "cuda" or pad:
                ctx.log(f"kernels: {running}")
        yield
