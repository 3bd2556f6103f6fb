"""A trace of some steps (`runtime.profile`), and waits for the device (`runtime.sync_debug`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.autograd.profiler import emit_nvtx
from torch.profiler import ProfilerActivity, profile

from vfm.base import UserError
from vfm.interfaces import Context, TrainingRuntime
from vfm.train.parallel.dist import DistributedWorld


class StepProfiler:
    """Records some steps in rank 0, with marks for reading, forward and backward passes and the optimizer.

    With `profiler: torch` their trace is written into the artifact, as `profile/steps-FIRST-LAST.json.gz`, for
    chrome://tracing or Perfetto. With `nsys`, Nsight Systems records between the first and the last step, and each
    operation is an NVTX range. If the first step was taken before this run, there is a warning instead.

    Args:
        runtime: The steps, counted from 1, and what records them.
        ctx: Context of the training.
        world: This process.
        done: Number of steps that were taken before this run.

    Raises:
        UserError: If `nsys` is set, but the device is not CUDA.
    """

    def __init__(self, runtime: TrainingRuntime, ctx: Context, world: DistributedWorld, done: int) -> None:
        steps = runtime.profile
        if steps and steps[0] <= done and world.is_main:
            ctx.warn(
                f"runtime.profile: steps {steps[0]} to {steps[1]} have no trace: this run starts after step {done}"
            )
        if runtime.profiler == "nsys" and world.device.type != "cuda":
            raise UserError(f"{ctx.stage}: runtime.profiler: nsys needs a CUDA device, got {world.device.type}")
        self.steps = steps if world.is_main else None
        self.ctx = ctx
        self.device = world.device.type
        self.by_nsys = runtime.profiler == "nsys"
        self.recording: profile | emit_nvtx | None = None

    def before(self, step: int) -> None:
        """Start the recording before the first step. Steps are counted from 1."""
        if not self.steps or step != self.steps[0]:
            return
        if self.by_nsys:
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
            self.recording = emit_nvtx()  # type: ignore[no-untyped-call]
            self.recording.__enter__()  # type: ignore[no-untyped-call]
            return
        activities = [ProfilerActivity.CPU]
        if self.device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.recording = profile(activities=activities, acc_events=True)  # else torch warns of a second cycle
        self.recording.start()

    def after(self, step: int) -> None:
        """Write the trace after the last step."""
        if not self.recording or not self.steps or step != self.steps[1]:
            return
        recording = self.recording
        self.close()
        if isinstance(recording, profile):
            file = self.ctx.directory / "profile" / f"steps-{self.steps[0]}-{step}.json.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            recording.export_chrome_trace(str(file))
            self.ctx.log(f"profile of steps {self.steps[0]} to {step}: profile/{file.name} in the artifact")

    def close(self) -> None:
        """Stop recording, also after an error."""
        recording = self.recording
        self.recording = None
        if isinstance(recording, profile):
            recording.stop()
        elif recording:
            recording.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


@contextmanager
def waits_reported(mode: Literal["warn", "error"] | None, device: torch.device) -> Iterator[None]:
    """Warn or fail within the context when the host waits for a CUDA device. Other devices are not checked."""
    if mode is None or device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
