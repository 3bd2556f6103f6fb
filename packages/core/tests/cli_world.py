"""What the tests of the command line share: plugins that are really installed, and the command run as a user would."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vfm.cli import app

RECIPE = """\
stages:
  - {kind: toy.draw, name: a, count: 3}
  - {kind: toy.draw, name: b, seed: 5, mode: squared}
  - {kind: toy.add, name: sum, inputs: [a, b]}
"""
Vfm = Callable[..., "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines of standard error."""
        return self.err.splitlines()


def install(folder: Path, name: str, module: str) -> None:
    """Makes a module a plugin, as pip does: by a folder of metadata with its entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vfm]\n{name} = {module}\n")


def run_here(*words: str | Path, answers: str = "") -> Outcome:
    """The command in this process, which is quick; `answers` are the lines of its standard input."""
    done = CliRunner().invoke(app, [str(word) for word in words], prog_name="vfm", input=answers)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Outcome(done.exit_code, done.stdout, done.stderr)


def run_alone(*words: str | Path, cwd: Path, path: Path | None = None) -> Outcome:
    """The command in a process of its own; `path` holds plugins that only this process finds."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(path or ""), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vfm", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt here: a job in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the recipe `r.yaml` in it, the toy plugin being installed."""
    site, here = tmp_path / "site", tmp_path / "here"
    install(site, "toys", "toy_plugin")
    monkeypatch.syspath_prepend(site)
    here.mkdir()
    (here / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(here)
    return here
