"""The wheels and sdists that tests of installing share, and the order of tests. Modules here are imported by name."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "packages/core/tests"))  # for the files of peers
sys.path.append(str(Path(__file__).parents[1] / "packages/eva/tests"))  # for the names of released detectors
# For the processes that tests start: several workers with two threads each on two cores take longer than with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from order import slow_first
from outside import PACKAGES, ROOT, call, checked, made_once
from vfm_eva import Target


def pytest_configure(config: pytest.Config) -> None:
    """Let idle workers of pytest-xdist, if it is in use, take over tests; by default each keeps what it was given."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with slow tests on every worker."""
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        items[:] = slow_first(items, workers, lambda item: item.name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests of each package say at their end, of which pytest shows nothing where they pass."""
    for report in terminalreporter.getreports("passed"):
        for summary in dict(report.user_properties).values():
            terminalreporter.write(summary)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of all six packages and the sdists that they were built from.

    `make release` names one that is to be checked.
    """
    if release := os.environ.get("VFM_RELEASE"):
        return (ROOT / release).absolute()

    def build(folder: Path) -> None:
        for package in PACKAGES:
            checked(call("uv", "build", "--quiet", "--out-dir", folder, f"packages/{package}", cwd=ROOT))

    return made_once(tmp_path_factory, "wheels", build)


@pytest.fixture
def target_plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the example of a target as its entry point does, and remove its type after the test."""
    monkeypatch.syspath_prepend(ROOT / "examples/target_plugin")
    monkeypatch.setattr(Target, "choices", dict(Target.choices))
    monkeypatch.delitem(sys.modules, "vfm_permuted", raising=False)  # importing adds the type
    return importlib.import_module("vfm_permuted")
