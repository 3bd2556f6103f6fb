"""The example of a curation filter, installed from its own folder: its type is known, and its recipe runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from outside import ROOT, Installed, call, checked, install

EXAMPLE = ROOT / "examples/filter_plugin"


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("filter_plugin")
    copy = shutil.copytree(EXAMPLE, folder / "filter_plugin")  # building must not write into the source tree
    return install(folder, wheels, "vfm-curation", copy)


def test_example_has_fewer_than_40_lines() -> None:
    assert len((EXAMPLE / "vfm_short_captions.py").read_text().splitlines()) < 40


def test_recipe_with_the_plugins_filter_runs_and_reports_its_reason(installed: Installed) -> None:
    checked(installed.vfm("run", "filter_plugin/recipe.yaml"))
    run = installed.folder / "store/runs/recipe"
    assert json.loads((run / "artifacts/filtered/artifact.json").read_text())["num_samples"] < 200
    assert "short_captions" in (run / "report.html").read_text()
    verdicts = (
        "import collections, pyarrow.parquet as pq\n"
        f"reasons = pq.read_table({str(run / 'artifacts/filtered/verdicts')!r})['reason'].to_pylist()\n"
        "assert set(reasons) == {'', 'short_captions'}, collections.Counter(reasons)"
    )
    checked(call(installed.python, "-c", verdicts, cwd=installed.folder))


def test_mistake_in_the_plugins_filter_is_one_line(installed: Installed) -> None:
    recipe = (EXAMPLE / "recipe.yaml").read_text().replace("min_words", "min_word")
    (installed.folder / "wrong.yaml").write_text(recipe)
    done = installed.vfm("plan", "wrong.yaml")
    assert done.returncode == 2
    assert "min_word: unknown key; did you mean 'min_words'?" in done.stdout + done.stderr
