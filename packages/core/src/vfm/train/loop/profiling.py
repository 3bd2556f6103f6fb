"""A trace of some steps by torch's profiler: `runtime.profile`."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from vfm.interfaces import Context
from vfm.train.parallel.dist import World


class StepProfiler:
    """Records the steps `first` to `last` in the first process, and writes their trace beside the artifact.

    The trace is `profile/steps-FIRST-LAST.json.gz`, which chrome://tracing and Perfetto show. If the first of the steps
    was taken before the run, there is none, and a warning says so.

    Args:
        steps: first and last step, counted from 1; None: no trace.
        ctx: the training's context.
        world: this process.
        done: steps that were taken before the run.
    """

    def __init__(self, steps: tuple[int, int] | None, ctx: Context, world: World, done: int) -> None:
        if steps and steps[0] <= done and world.is_main:
            ctx.warn(
                f"runtime.profile: steps {steps[0]} to {steps[1]} have no trace: this run starts after step {done}"
            )
        self.steps = steps if world.is_main else None
        self.ctx, self.device = ctx, world.device.type
        self.recording: profile | None = None

    def before(self, step: int) -> None:
        """Start before the first of the steps, which are counted from 1."""
        if self.steps and step == self.steps[0]:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device == "cuda" else [])]
            self.recording = profile(activities=activities, acc_events=True)  # else torch warns of a second cycle
            self.recording.start()

    def after(self, step: int) -> None:
        """Write the trace after the last of the steps."""
        if self.recording and self.steps and step == self.steps[1]:
            self.recording.stop()
            file = self.ctx.directory / "profile" / f"steps-{self.steps[0]}-{step}.json.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            self.recording.export_chrome_trace(str(file))
            self.recording = None
            self.ctx.log(f"profile of steps {self.steps[0]} to {step}: profile/{file.name} in the artifact")

    def close(self) -> None:
        """Stop a recording that a failure has cut off."""
        if self.recording:
            self.recording.stop()
            self.recording = None
