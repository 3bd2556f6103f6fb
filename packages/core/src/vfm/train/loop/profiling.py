"""A trace of some steps with torch's profiler (`runtime.profile`)."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from vfm.interfaces import Context
from vfm.train.parallel.dist import DistributedWorld


class StepProfiler:
    """Records some steps in rank 0, and writes their trace into the artifact.

    The trace is `profile/steps-FIRST-LAST.json.gz`, which can be opened in chrome://tracing or Perfetto. If the first
    step was taken before this run, there is a warning instead of a trace.

    Args:
        steps: first and last step, counted from 1, None for no trace.
        ctx: context of the training.
        world: this process.
        done: number of steps that were taken before this run.
    """

    def __init__(self, steps: tuple[int, int] | None, ctx: Context, world: DistributedWorld, done: int) -> None:
        if steps and steps[0] <= done and world.is_main:
            ctx.warn(
                f"runtime.profile: steps {steps[0]} to {steps[1]} have no trace: this run starts after step {done}"
            )
        self.steps = steps if world.is_main else None
        self.ctx, self.device = ctx, world.device.type
        self.recording: profile | None = None

    def before(self, step: int) -> None:
        """Start the recording before the first step. Steps are counted from 1."""
        if self.steps and step == self.steps[0]:
            activities = [ProfilerActivity.CPU]
            if self.device == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self.recording = profile(activities=activities, acc_events=True)  # else torch warns of a second cycle
            self.recording.start()

    def after(self, step: int) -> None:
        """Write the trace after the last step."""
        if self.recording and self.steps and step == self.steps[1]:
            self.recording.stop()
            file = self.ctx.directory / "profile" / f"steps-{self.steps[0]}-{step}.json.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            self.recording.export_chrome_trace(str(file))
            self.recording = None
            self.ctx.log(f"profile of steps {self.steps[0]} to {step}: profile/{file.name} in the artifact")

    def close(self) -> None:
        """Stop a recording that was interrupted by an error."""
        if self.recording:
            self.recording.stop()
            self.recording = None
