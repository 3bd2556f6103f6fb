"""Submit a job for each stage whose artifact is missing, and an array for its seeds (`--job-per-stage`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vfm.flow.execution.durations import without_seed
from vfm.flow.plan.plan import Step, stage_names


@dataclass(frozen=True)
class StageJob:
    """A stage as a job, or its seeds as the tasks of an array.

    Attributes:
        name: Name of the stage, without a seed.
        steps: The steps, one for each task.
    """

    name: str
    steps: tuple[Step, ...]

    @property
    def stages(self) -> list[str]:
        """Names of the stages, with their seeds."""
        return stage_names(self.steps)


def stage_jobs(steps: Sequence[Step]) -> list[StageJob]:
    """Group the steps of a plan whose artifacts are missing, in the order of the plan."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        if step.status != "cached":
            groups.setdefault(without_seed(step.stage.name), []).append(step)
    return [StageJob(name, tuple(group)) for name, group in groups.items()]


def dependency(job: StageJob, submitted: Sequence[tuple[StageJob, str]]) -> str:
    """Build the `--dependency` of a job, empty if it needs no other job.

    A task starts after the task of the same seed (`aftercorr`) where both arrays have the same seeds, and after the
    whole other job (`afterok`) otherwise.

    Args:
        job: The job.
        submitted: The jobs that were submitted before it, with their numbers.
    """
    numbers: dict[str, list[str]] = {"afterok": [], "aftercorr": []}
    for earlier, number in submitted:
        inputs = [set(step.inputs) & set(earlier.stages) for step in job.steps]
        if any(inputs):
            one_each = len(inputs) > 1 and inputs == [{name} for name in earlier.stages]
            numbers["aftercorr" if one_each else "afterok"].append(number)
    conditions = []
    for kind, known in numbers.items():
        if known:
            conditions.append(":".join([kind, *known]))
    return ",".join(conditions)
