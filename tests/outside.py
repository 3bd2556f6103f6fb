"""Environments outside the workspace, as a user has them: made, filled from wheels, and worked in."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "kernels", "curation", "eva", "clip", "diva")
Done = subprocess.CompletedProcess[str]


def call(*command: str | Path, cwd: Path, **environment: str) -> Done:
    """A command in an environment that knows nothing of the one the tests run in."""
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT", "PYTEST")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True)


def checked(done: Done) -> Done:
    """The same, after making sure that it went well."""
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that all workers of pytest-xdist share; the first one that needs it makes it."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, part = shared / name, base / f"{name}.part"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


@dataclass(frozen=True)
class Installed:
    """An environment outside the workspace, with a folder to work in."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "venv/bin/python"

    def vfm(self, *words: str | Path) -> Done:
        """Runs the command `vfm`; single-threaded, since the machine is shared."""
        return call(self.python.with_name("vfm"), *words, cwd=self.folder, OMP_NUM_THREADS="1")

    def modules(self) -> set[str]:
        """The names of the installed distributions."""
        listed = checked(call("uv", "pip", "list", "-p", self.python, "--format", "freeze", cwd=self.folder)).stdout
        return {line.partition("==")[0] for line in listed.splitlines()}


def install(folder: Path, wheels: Path, *wanted: str | Path) -> Installed:
    """Makes an environment with some packages, ours from `wheels`, the others as the workspace fixes them."""
    made = Installed(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checked(call("uv", "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(settings["constraint-dependencies"]) + "\n")
    ours = ("--find-links", wheels, "--exclude-newer", settings["exclude-newer"], "--constraints", constraints)
    checked(call("uv", "pip", "install", "--quiet", "-p", made.python, *ours, *wanted, cwd=folder))
    return made
