"""Processes that a run starts import nothing from the working folder, which may hold a stranger's `torch.py`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import toy_plugin
from cli_world import install
from test_flow_jobs import Step
from vfm.flow.execution.execution import torchrun_command, torchrun_lines
from vfm.flow.execution.run import run_plan
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe

RECIPE = """\
stages:
  - {kind: toy.draw, name: a}
  - {kind: toy.draw, name: b, seed: 5}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working folder with files named as modules that every process imports; each leaves a mark if it is imported."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("torch", "yaml", "pydantic"):
        (folder / f"{name}.py").write_text(f"from pathlib import Path\nPath('executed-{name}').touch()\n")
    return folder


def executed(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("executed-*"))


def test_a_step_in_a_process_of_its_own_imports_nothing_from_it(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "toys", "toy_plugin")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{Path(__file__).parent}")
    monkeypatch.chdir(here)
    known = {stage.kind_name(): stage for stage in toy_plugin.vfm_stages()}
    recipe, store = parse_recipe(RECIPE, known, name="r", where="r.yaml"), Store(tmp_path / "store")
    run_plan(recipe, make_plan(recipe, store), store, lambda event: None, jobs=2)
    assert executed(here) == []


@pytest.mark.parametrize("printed", [False, True])
def test_torchruns_processes_import_nothing_from_it(here: Path, printed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step.stage.runtime, "processes", 1)
    empty = here / "empty"
    command = ["sh", "-c", torchrun_lines(Step, empty)[0]] if printed else torchrun_command(Step, empty)
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert executed(here) == []
    assert "not a prepared step (step.json is missing)" in done.stdout + done.stderr
