"""A plugin in a folder of its own, installed beside vfm-core: its stage and its listener take part in a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from outside import ROOT, Installed, checked, install

EXAMPLE = ROOT / "examples/plugin"


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("plugin")
    copy = shutil.copytree(EXAMPLE, folder / "plugin")  # building leaves nothing in the source tree
    return install(folder, wheels, "vfm-core[report]", copy)


def test_example_is_short_enough_to_be_read_at_a_glance() -> None:
    assert len((EXAMPLE / "vfm_words.py").read_text().splitlines()) < 40


def test_installed_plugin_is_listed_with_its_stage_and_its_hooks(installed: Installed) -> None:
    line = next(line for line in checked(installed.vfm("plugins")).stdout.splitlines() if "vfm-words" in line)
    assert "vfm-words 0.1.0" in line
    assert "words.count" in line
    assert {"vfm_event", "vfm_stages"} <= set(line.replace(",", " ").split())


def test_recipe_with_the_plugins_stage_runs_and_its_listener_receives_events(installed: Installed) -> None:
    done = checked(installed.vfm("run", "plugin/recipe.yaml"))
    assert "\a" in done.stdout
    run = installed.folder / "store/runs/recipe"
    counts = json.loads((run / "artifacts/words/artifact.json").read_text())["counts"]
    assert len(counts) == 10
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert "Common words" in (run / "report.html").read_text()
