"""Every package's own tests, with only that package and what it declares installed: nothing leans on its neighbours."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outside import PACKAGES, ROOT

SPEEDS = {"quick": "not slow", "slow": "slow"}


@pytest.fixture(scope="module")
def box() -> Iterator[Path]:
    """The environment in which each package in turn is installed, with nothing else.

    Each worker has one, and keeps it for the next time, since compiling bytecode takes half a minute of a core.
    """
    box = ROOT / "build" / f"box-{os.environ.get('PYTEST_XDIST_WORKER', 'gw0')}"
    box.parent.mkdir(exist_ok=True)
    with box.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield box


def uv(*arguments: str, package: str, box: Path) -> subprocess.CompletedProcess[str]:
    inherited = {"VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"}
    environment = {k: v for k, v in os.environ.items() if k not in inherited and not k.startswith("PYTEST")}
    environment["OMP_NUM_THREADS"] = "1"  # two packages at once on two cores: twice the threads is a tenth of the speed
    environment["UV_PROJECT_ENVIRONMENT"] = str(box)
    command = ["uv", "run", "--exact", "--package", package, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.timeout(4500)  # longer than one of its tests, so that that one is named
@pytest.mark.parametrize("speed", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("package", PACKAGES)
def test_package_passes_its_tests_alone(
    package: str, speed: str, box: Path, record_property: Callable[[str, object], None]
) -> None:
    command = ("python", "-m", "pytest", f"packages/{package}", "-p", "no:cacheprovider", "-m", SPEEDS[speed])
    done = uv(*command, package=f"vfm-{package}", box=box)
    if speed == "slow" and done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip(f"{package} has no slow tests")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary = re.split(r"\[100%\]\n|=+ short test summary info =+\n", done.stdout)[-1]
    assert re.search(r"\d+ passed", summary)
    record_property("alone", f"{package}, {speed} tests:\n{summary}")


def test_nothing_but_a_package_and_what_it_declares_is_installed(box: Path) -> None:
    for package, others in {
        "vfm-clip": {"vfm_curation", "vfm_diva"},
        "vfm-curation": {"vfm_clip", "vfm_kernels"},
    }.items():
        code = f"import importlib.util, sys; print(sys.prefix, *filter(importlib.util.find_spec, {sorted(others)}))"
        assert uv("python", "-c", code, package=package, box=box).stdout.split() == [str(box)]
