"""The small pre-training, as a module that tests and child processes can import by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import eva_toy
from vfm.artifacts import ClipCheckpoint, Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Pictures of shapes."""
    return eva_toy.make_pool(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ClipCheckpoint:
    """A CLIP model with random weights: its features are as good a target as any."""
    return eva_toy.make_teacher(tmp_path_factory.mktemp("teacher"))
