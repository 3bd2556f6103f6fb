"""The options `--on` and `--job` of `vfm run`: submit the command line itself as a job."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vfm.base import UserError
from vfm.cli.command import show
from vfm.flow.execution.jobs import Submitted, submit
from vfm.flow.plan.plan import Step


def submit_run(on: str | None, parameters: Sequence[str], store: Path) -> None:
    """Submit the current command line without the options `--on` and `--job`.

    Raises:
        UserError: If the scheduler or a parameter does not exist.
    """
    if on is None:
        raise UserError("--job needs --on slurm or --on local")
    settings = dict(_parameter(text) for text in parameters)
    job = submit(_words(), store / "jobs", on, settings)  # type: ignore[arg-type]
    show(f"submitted job {job.number} to {on}; its output: {job.output}, its errors: {job.errors}")


def submit_stages(on: str | None, parameters: Sequence[str], store: Path, steps: Sequence[Step]) -> None:
    """Submit the current command line for each stage whose artifact is missing, and for the report at the end.

    A scheduler starts the job of a stage when the jobs of its inputs have succeeded, and cancels it if one has failed.

    Raises:
        UserError: If the scheduler is not Slurm, or a parameter does not exist.
    """
    if "--fresh" in sys.argv:
        raise UserError("--job-per-stage: expected no --fresh, with which each job would make its inputs again")
    if on != "slurm":
        raise UserError(f"--job-per-stage: expected --on slurm, which starts jobs one after another, got --on {on}")
    settings = dict(_parameter(text) for text in parameters)
    jobs: dict[str, Submitted] = {}
    for step in steps:
        if step.status != "cached":
            name, needed = step.stage.name, [jobs[ref].number for ref in step.inputs if ref in jobs]
            job_settings = {"name": f"vfm-{name}", **settings, **_after(needed, settings)}
            jobs[name] = submit([*_words(), "--until", name], store / "jobs", "slurm", job_settings)
            show(f"submitted job {jobs[name].number} for {name}; its output: {jobs[name].output}")
    numbers = [job.number for job in jobs.values()]
    last = submit(_words(), store / "jobs", "slurm", settings | _after(numbers, settings))
    show(f"submitted job {last.number} for the report; its output: {last.output}")


def _after(numbers: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Build submitit's parameters for a job that starts after others have succeeded."""
    if not numbers:
        return {}
    more = {**settings.get("slurm_additional_parameters", {}), "kill_on_invalid_dep": "yes"}
    return {"slurm_dependency": f"afterok:{':'.join(numbers)}", "slurm_additional_parameters": more}


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
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            yield word
