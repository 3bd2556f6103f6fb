"""The small parts, as a module that tests and child processes can import by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import diva_toy
from vfm.plugin import ClipCheckpoint, GeneratorCheckpoint, Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Return images of shapes with captions."""
    return diva_toy.make_pool(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipCheckpoint:
    """Return a CLIP model with random weights: its embeddings differ by colour, which is enough here."""
    return diva_toy.make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def prior(tmp_path_factory: pytest.TempPathFactory, clip: ClipCheckpoint) -> GeneratorCheckpoint:
    """Return a prior over the CLIP model's joint space, with random weights."""
    return diva_toy.make_prior(tmp_path_factory.mktemp("prior"), clip)


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> GeneratorCheckpoint:
    """Return a generator like Stable Diffusion: a VAE's latents, text states as context, no condition map."""
    return diva_toy.make_stable_diffusion(tmp_path_factory.mktemp("sd"))
