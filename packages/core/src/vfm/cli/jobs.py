"""The options `--on` and `--job` of `vfm run`: submit the command line itself as a job."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vfm.base import UserError
from vfm.cli.command import show
from vfm.flow.execution.job_sizes import START_MINUTES, check_scopes, chosen_for, size_of
from vfm.flow.execution.jobs import submit, submit_array
from vfm.flow.execution.stage_jobs import StageJob, dependency, stage_jobs
from vfm.flow.plan.estimate import known_costs
from vfm.flow.plan.plan import Step, stage_names
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe
from vfm.interfaces import Stage

REPORT = Stage(kind="vfm.report", name="report")  # the job at the end, which uses no GPU


def submit_run(on: str | None, parameters: Sequence[str], store: Path) -> None:
    """Submit the current command line without the options `--on` and `--job`.

    Args:
        on: Name of the scheduler.
        parameters: Parameters of the job.
        store: Folder of artifacts and runs.

    Raises:
        UserError: If the scheduler or a parameter does not exist.
    """
    if on is None:
        raise UserError("--job needs --on slurm or --on local")
    settings = dict(map(_parameter, parameters))
    job = submit(_words(), store / "jobs", on, settings)  # type: ignore[arg-type]
    show(f"submitted job {job.number} to {on}; its output: {job.output}, its errors: {job.errors}")


def submit_stages(
    on: str | None, parameters: Sequence[str], store: Path, recipe: Recipe, steps: Sequence[Step]
) -> None:
    """Submit the current command line for each stage whose artifact is missing, and for the report at the end.

    The seeds of a stage are the tasks of an array. A scheduler starts the job of a stage when the jobs of its inputs
    have succeeded, and cancels it if one has failed.

    Args:
        on: Name of the scheduler.
        parameters: Parameters of the jobs. Sizes come from the estimated costs where there are none.
        store: Folder of artifacts and runs.
        recipe: The recipe.
        steps: Planned steps of the recipe.

    Raises:
        UserError: If the scheduler is not Slurm, or a parameter does not exist.
    """
    if "--fresh" in sys.argv:
        raise UserError("--job-per-stage: expected no --fresh, with which each job would make its inputs again")
    if on != "slurm":
        raise UserError(f"--job-per-stage: expected --on slurm, which starts jobs one after another, got --on {on}")
    settings = dict(map(_parameter, parameters))
    check_scopes(settings, stage_names(steps))
    folder = store / "jobs"
    jobs = stage_jobs(steps)
    costs = known_costs(recipe, Store(store), {job.steps[0].stage.name for job in jobs})
    submitted: list[tuple[StageJob, str]] = []
    numbers = []
    for job in jobs:
        stage = job.steps[0].stage
        size = {**size_of(stage, costs.get(stage.name)), **chosen_for(stage, settings)}
        after = _after(dependency(job, submitted), size)
        commands = [[*_words(), "--until", name] for name in job.stages]
        tasks = submit_array(commands, folder, "slurm", {"name": f"vfm-{job.name}", **size, **after})
        number = tasks[0].number.split("_", 1)[0]
        submitted.append((job, number))
        numbers.append(number)
        seeds = f", {len(tasks)} seeds" if len(tasks) > 1 else ""
        show(f"submitted job {number} for {job.name}{seeds}; its output: {tasks[0].output}")
    size = {"timeout_min": START_MINUTES, **chosen_for(REPORT, settings)}
    after = _after(":".join(["afterok", *numbers]) if numbers else "", size)
    last = submit(_words(), folder, "slurm", size | after)
    show(f"submitted job {last.number} for the report; its output: {last.output}")


def _after(condition: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Build submitit's parameters for a job that starts after others have succeeded."""
    if not condition:
        return {}
    more = {**settings.get("slurm_additional_parameters", {}), "kill_on_invalid_dep": "yes"}
    return {"slurm_dependency": condition, "slurm_additional_parameters": more}


def _words() -> list[str]:
    """List the words of this command line without the options that submit it."""
    words = _without(sys.argv[1:], ("--on", "--job"))
    return [word for word in words if word != "--job-per-stage"]


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--job: expected KEY=VALUE, got {text}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--job: expected KEY=VALUE, the value in YAML, got {text}") from None


def _without(words: Sequence[str], options: tuple[str, ...]) -> Iterator[str]:
    """Yield the words of a command line without options that take a value."""
    remaining = iter(words)
    for word in remaining:
        if word in options:
            next(remaining, None)
        elif word.partition("=")[0] not in options:
            yield word
