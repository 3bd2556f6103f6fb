"""A plugin's loss, installed beside vfm-clip, trains a CLIP model like the losses of vfm-clip itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from outside import ROOT, Installed, checked, install

EXAMPLE = ROOT / "examples/loss_plugin"


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("loss")
    copy = shutil.copytree(EXAMPLE, folder / "plugin")  # building leaves nothing in the source tree
    return install(folder, wheels, "vfm-clip", "vfm-core[report]", copy)


def test_example_is_short() -> None:
    assert sum(len(file.read_text().splitlines()) for file in EXAMPLE.glob("*.py")) < 40


@pytest.mark.slow
def test_clip_train_minimises_the_plugins_loss(installed: Installed) -> None:
    checked(installed.vfm("run", "plugin/recipe.yaml"))
    file = installed.folder / "store/runs/recipe/artifacts/clip/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 6
    assert all(row["train/smoothed_loss"] == row["train/loss"] for row in rows)


@pytest.mark.slow
def test_mistakes_in_the_plugins_settings_are_one_line(installed: Installed) -> None:
    done = installed.vfm("plan", "plugin/recipe.yaml", "--set", "clip.loss.smoothing=1")
    assert done.returncode == 2
    assert "clip.loss.smoothing" in done.stdout + done.stderr
    unknown = installed.vfm("plan", "plugin/recipe.yaml", "--set", "clip.loss.type=smooth")
    assert "did you mean 'smoothed'?" in unknown.stdout + unknown.stderr
