"""Checks of the stages that will run, before the first of them starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vfm.base import UserError, drop_keys
from vfm.flow.plan.continuation import check_continuation
from vfm.flow.plan.plan import Step, stages_by_name
from vfm.flow.plan.sampling import check_sampler
from vfm.interfaces import Preflight, Training

BENCHMARKS = ("data.choices", "data.labeled", "data.pairs")  # kinds of the stages that import them


def preflight(steps: Sequence[Step], *, fresh: bool = False) -> None:
    """Run the preflight checks of every stage that will run.

    Args:
        steps: The plan.
        fresh: All steps will run again, so none of their artifacts is known.

    Raises:
        UserError: If checks fail. The message has one line for each.
    """
    failures = []
    for step, before in _waiting(steps, fresh=fresh):
        stages = [("", step.stage)]  # each with the prefix of its settings
        if isinstance(step.stage, Training):
            for task in step.stage.evaluation.tasks:
                stages.append((f"evaluation.tasks.{task.name}: ", task))
        for prefix, stage in stages:
            try:
                if isinstance(stage, Training):
                    _check_training(stage)
                    check_continuation(stage, before)
                    check_sampler(stage, before)
                stage.preflight(before)
            except UserError as error:
                failures.append(step.located(f"{prefix}{error}"))
    if failures:
        raise UserError("\n".join(failures))


def check_files(steps: Sequence[Step]) -> None:
    """Run the part of `preflight` that needs no torch.

    It checks folders of benchmarks, and the inputs of training stages.

    Raises:
        UserError: If there are mistakes. The message has one line for each.
    """
    failures = []
    for step, before in _waiting(steps):
        try:
            if isinstance(step.stage, Training):
                check_continuation(step.stage, before)
                check_sampler(step.stage, before)
            elif step.stage.kind in BENCHMARKS and Path(getattr(step.stage, "path", "")).is_dir():
                step.stage.preflight(before)
        except UserError as error:
            failures.append(step.located(str(error)))
    if failures:
        raise UserError("\n".join(failures))


def _waiting(steps: Sequence[Step], *, fresh: bool = False) -> Iterator[tuple[Step, Preflight]]:
    """Yield the steps that will run, with the facts known before each."""
    stages = stages_by_name(steps)
    gone = stages if fresh else ()
    for step in steps:
        if fresh or step.status != "cached":
            known = drop_keys(step.existing_inputs(), gone)
            yield step, Preflight(stages, known, step.inputs)


def _check_training(stage: Training) -> None:
    # They import torch, which is not installed just for curation.
    from vfm.train.optim.optim import check_optimizer
    from vfm.train.parallel import float8, kernels

    kernels.check_kernels(stage.runtime)
    float8.check_float8(stage.precision)
    check_optimizer(stage.optimizer)
