"""Check samplers that name a column before a run, and describe their epochs in the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vfm.base import load_function
from vfm.flow.plan.plan import Step, stages_by_name
from vfm.interfaces import Preflight, Training

_CHECKS = "vfm.data.indexing.sampler_checks"  # imports pyarrow


def check_sampler(stage: Training, known: Preflight) -> None:
    """Check that the data of a training have, or will have, the column of its sampler.

    Raises:
        UserError: If the data lack the column.
    """
    if stage.loading.by_column:
        load_function(f"{_CHECKS}:check_columns")(stage.loading.by_column, stage, known)


def sampling_lines(steps: Sequence[Step]) -> Iterator[str]:
    """Describe the epochs of each training whose sampler names a column, where its data exist.

    Raises:
        UserError: If a column is missing, or a weight is not a number of at least 0.
    """
    stages = stages_by_name(steps)
    for step in steps:
        if isinstance(step.stage, Training) and step.stage.loading.by_column:
            known = Preflight(stages, step.existing_inputs())
            yield from load_function(f"{_CHECKS}:describe_epochs")(step.stage.loading.by_column, step.stage, known)
