"""Makes this folder's modules importable by tests and child processes; shared inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "benchmarks"))

import eva_toy
from vfm.plugin import ClipCheckpoint, Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Return a pool of images of shapes."""
    return eva_toy.make_pool(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ClipCheckpoint:
    """Return a CLIP model with random weights, whose features serve as targets."""
    return eva_toy.make_teacher(tmp_path_factory.mktemp("teacher"))
