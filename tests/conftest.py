"""The wheels that the tests of installing share. Modules of this folder can be imported by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from outside import PACKAGES, ROOT, call, checked


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of all six packages."""
    folder = tmp_path_factory.mktemp("wheels")
    for package in PACKAGES:
        built = call("uv", "build", "--wheel", "--quiet", "--out-dir", folder, f"packages/{package}", cwd=ROOT)
        checked(built)
    return folder
