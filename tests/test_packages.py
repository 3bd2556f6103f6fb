"""Every package's own tests, with only that package and what it declares installed: nothing leans on its neighbours."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHOW_PREFIX = "import sys; print(sys.prefix)"


def uv(*arguments: str, package: str) -> subprocess.CompletedProcess[str]:
    inherited = {"VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"}
    environment = {k: v for k, v in os.environ.items() if k not in inherited and not k.startswith("PYTEST")}
    environment["OMP_NUM_THREADS"] = "1"  # two packages at once on two cores: twice the threads is a tenth of the speed
    command = ["uv", "run", "--isolated", "--package", package, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("package", ["core", "kernels", "curation", "eva", "clip", "diva"])
def test_package_passes_its_tests_alone(package: str) -> None:
    done = uv("python", "-m", "pytest", f"packages/{package}", "-p", "no:cacheprovider", package=f"vfm-{package}")
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


def test_isolated_run_uses_an_environment_of_its_own() -> None:
    prefix = uv("python", "-c", SHOW_PREFIX, package="vfm-curation").stdout.strip()
    assert prefix
    assert Path(prefix) != ROOT / ".venv"
    assert not Path(prefix).is_relative_to("/usr")
