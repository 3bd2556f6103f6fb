"""The options `--on` and `--job` of `vfm run`: submit the command line itself as a job."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from vfm.base import UserError
from vfm.cli.command import show
from vfm.flow.execution.jobs import Cluster, submit


def submit_run(on: str | None, parameters: Sequence[str], store: Path) -> None:
    """Submit the present command line without these options.

    Raises:
        UserError: the scheduler or a parameter does not exist.
    """
    if on is None:
        raise UserError("--job needs --on slurm or --on local")
    if on not in get_args(Cluster):
        raise UserError(f"--on: expected {' or '.join(get_args(Cluster))}, got {on}")
    settings = dict(_parameter(each) for each in parameters)
    job = submit(list(_without(sys.argv[1:], ("--on", "--job"))), store / "jobs", on, settings)  # type: ignore[arg-type]
    show(f"submitted job {job.number} to {on}; its output: {job.output}, its errors: {job.errors}")


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
