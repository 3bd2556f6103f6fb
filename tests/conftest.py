"""The wheels and sdists that tests of installing share, and the order of tests. Modules here are imported by name."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from order import slow_first
from outside import PACKAGES, ROOT, call, checked


def pytest_configure(config: pytest.Config) -> None:
    """Let idle workers of pytest-xdist, if it is in use, take over tests; by default each keeps what it was given."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with slow tests on every worker."""
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        items[:] = slow_first(items, workers, lambda item: item.path.name)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of all six packages and the sdists that they were built from.

    It is built by the first worker that needs it; `make release` names one that is to be checked.
    """
    if release := os.environ.get("VFM_RELEASE"):
        return (ROOT / release).absolute()
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, part = shared / "wheels", base / "wheels.part"
    with (shared / "wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            for package in PACKAGES:
                built = call("uv", "build", "--quiet", "--out-dir", part, f"packages/{package}", cwd=ROOT)
                checked(built)
            part.rename(folder)
    return folder
