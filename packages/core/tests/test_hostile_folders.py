"""Hostile recipes and working folders: no code of theirs runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hostile
from cli_world import run_here
from hostile import photo
from hostile_more import IN_FOLDERS, yaml_module, yaml_tag

DRAW = """
from vfm.interfaces import LinesPanel, Series
from vfm.report.charts import lines_svg
panel = LinesPanel(title="t", x_label="x", y_label="y", series=[Series(name="a", x=[1, 2], y=[1.0, 2.0])])
assert lines_svg(panel, "x").startswith("<svg")
"""


@pytest.mark.parametrize("content", [yaml_tag, yaml_module])
def test_a_recipe_makes_no_object(
    content: Callable[[Path], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(content(tmp_path / hostile.MARK))
    (tmp_path / f"{hostile.MODULE}.py").write_bytes(hostile.code(tmp_path / hostile.MARK))
    done = run_here("plan", "recipe.yaml")
    assert done.code == 2
    assert "recipe.yaml" in done.err
    assert not (tmp_path / hostile.MARK).exists()


@pytest.mark.parametrize("name", IN_FOLDERS)
def test_nothing_in_the_working_folder_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/a/photo.png").write_bytes(photo())
    for file, content in IN_FOLDERS[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content(tmp_path / hostile.MARK))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    vfm = str(Path(sys.executable).with_name("vfm"))
    for words in ([vfm, "data", "data"], [sys.executable, "-P", "-c", DRAW]):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / hostile.MARK).exists()
